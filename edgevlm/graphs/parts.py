"""The parts of a model: its modules by what they do, with the numbers that generic code needs.

A family file makes them (edgevlm/models/family.py is its contract); merging, signals, pruning,
blocks, planning and parity read them and never a config. `EncoderSpec` and `DecoderSpec` are
known before any weight is read, so a family's description has them too.

Each kind of model has its own type of parts, made of the types here: `ModelParts` is that of the
kind `vlm`, `graphs.embedders.EmbedderParts` that of the kind `encoder`.

Shapes: P views, N visual tokens of a view, K kept ones, D width of the encoder, C width of the
decoder, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgevlm.bundle.host import LEVELS, LayerRows, Rope
from edgevlm.bundle.kinds.shared.states import CacheSpec, RecurrentSpec
from edgevlm.graphs.layers import LayerNumbers, scaled
from edgevlm.graphs.ops import capped
from edgevlm.graphs.pruning import Pruning
from edgevlm.graphs.selection import rows_of


@dataclass(frozen=True)
class EncoderSpec:
    """Numbers of a vision encoder.

    Attributes:
        layers: Layers up to the one whose output goes to the connector.
        patches: Patches of one view, the class token left out.
        width: Channels of a patch: D.
        heads: Attention heads.
        head_size: Channels of a head.
        class_token: The first token stands for the whole view (CLIP) and is dropped at the end.
        unmergeable: Why tokens cannot merge between its layers; empty where they can.
        lacking: Signals that it cannot give, each with the reason.
        level_width: Channels of a token of `EncoderParts.levels`: C; 0 where there are none.
        groups: Groups of frames that it attends over at once, of as many patches each, one after
            the other; 1 where a view is a picture.
        folded: The layer behind which the encoder itself has fewer tokens, and how many; None where
            it has as many throughout.
    """

    layers: int
    patches: int
    width: int
    heads: int
    head_size: int
    class_token: bool = False
    unmergeable: str = ""
    lacking: tuple[tuple[str, str], ...] = ()
    level_width: int = 0
    folded: tuple[int, int] | None = None
    groups: int = 1

    def signal_width(self, name: str) -> int:
        """E of a signal [1, N, E]; 0 for one number a token, [1, N]."""
        widths = {
            "keys": self.head_size,
            "flat_keys": self.head_size * self.heads,
            "hidden": self.width,
            **dict.fromkeys(LEVELS, self.level_width),
        }
        return widths.get(name, 0)

    @property
    def tokens(self) -> int:
        """Tokens of one view between the layers: patches, and a class token if there is one."""
        return self.patches + self.class_token


@dataclass(frozen=True)
class DecoderSpec:
    """Numbers of a language decoder.

    Attributes:
        width: Channels of a token: C.
        caches: What each layer keeps from call to call, in order.
        layers: What each layer computes beside Llama's, in order.
        ropes: Inverse frequencies and scaling of the rotary tables; `LayerNumbers.table` counts
            them.
        table_scale: Factor of a row of the embedding table; visual tokens have none.
        max_positions: The most positions that are computed as the model does it.
        window: The fewest rows that the model's own cache keeps, where no mask says so; else None.
        levels: Layers to whose output the features of each of `EncoderParts.levels` are added, at
            the rows of visual tokens.
        mask: Who sees whom in a prompt, see `bundle.host.MASKS`.
        first_position: Position of the first token.
        per_layer: Numbers of a second table, or None.
        beyond: What it does at more positions, where its config has more; empty where it has not.
        residual_streams: Copies of a row that go from layer to layer side by side (AltUp, arXiv
            2301.13310): the first layer makes them of a row [1, S, C], the last norm one of them.
    """

    width: int
    caches: tuple[CacheSpec | RecurrentSpec, ...]
    layers: tuple[LayerNumbers, ...]
    ropes: tuple[Rope, ...]
    table_scale: float
    max_positions: int
    window: int | None = None
    levels: tuple[int, ...] = ()
    mask: str = "causal"
    first_position: int = 0
    per_layer: LayerRows | None = None
    beyond: str = ""
    residual_streams: int = 1

    @property
    def rope(self) -> Rope:
        """The first rotary table; the others have as many axes."""
        return self.ropes[0]

    @property
    def attending(self) -> tuple[int, ...]:
        """Layers that keep keys and values; the others are recurrent."""
        caches = enumerate(self.caches)
        return tuple(layer for layer, cache in caches if isinstance(cache, CacheSpec))

    @property
    def sources(self) -> dict[int, int]:
        """Layers that read the cache of an earlier one, and that one."""
        kept = ((i, c.source) for i, c in enumerate(self.caches) if isinstance(c, CacheSpec))
        return {layer: source for layer, source in kept if source is not None}

    @property
    def recurrent(self) -> bool:
        """Whether some layers are recurrent: what a token does to their state cannot be undone."""
        return len(self.attending) < len(self.caches)

    @property
    def most_rows(self) -> tuple[int, str]:
        """The longest context that is computed as the model does it, and what limits it."""
        if self.window is not None and self.window < self.max_positions:
            return self.window, (
                f"sliding window of {self.window} tokens, beyond which it hides earlier ones"
            )
        beyond = f", beyond which it {self.beyond}" if self.beyond else ""
        return self.max_positions, f"{self.max_positions} positions{beyond}"

    def beside_causal(self, context: int) -> str:
        """What its layers do beside causal attention with one rotary table; empty for nothing.

        Args:
            context: Rows of the cache.
        """
        least = min((layer.window for layer in self.layers if layer.window), default=context)
        if self.mask != "causal":
            return "tokens of a picture or prompt see each other both ways"
        if self.residual_streams > 1:
            return f"{self.residual_streams} copies of a row go through its layers"
        if self.per_layer is not None:
            return "each layer takes rows of a second table"
        if len(self.ropes) > 1:
            return f"layers have {len(self.ropes)} rotary tables"
        return f"some layers see {least} tokens of {context}" if least < context else ""


@dataclass(frozen=True)
class EncoderParts:
    """The modules of a vision encoder.

    Attributes:
        spec: Its numbers.
        embedding: pixel_values f32 [1, 3 * frames of a view, h_px, w_px] -> hidden [1, patches, D],
            the class token first where there is one.
        layers: hidden -> hidden, each.
        connector: hidden -> features [1, N, C] of one view; the head of a model that gives one
            embedding [1, E].
        fold: Values of patches [1, patches, E] -> of tokens [1, N, E], as the connector folds them.
        after: Layers that follow the one whose output goes to the connector; only signals of the
            last layer need them.
        grid: Constants of a view's grid of patches, nothing -> rotary tables cos, sin
            [1, patches, head_size], which each layer with an attribute `rotary` takes beside
            hidden; a block with such layers has them once. None where no layer is so.
        levels: Features of depths before the last that the decoder takes too: the layer after which
            each is taken, and what makes tokens of it, hidden -> [1, N, C].
    """

    spec: EncoderSpec
    embedding: nn.Module
    layers: tuple[nn.Module, ...]
    connector: nn.Module
    fold: nn.Module
    after: tuple[nn.Module, ...] = ()
    grid: nn.Module | None = None
    levels: tuple[tuple[int, nn.Module], ...] = ()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All of them in the order in which they run; a block's `span` counts in it."""
        return (self.embedding, *self.layers, self.connector)


@dataclass(frozen=True)
class DecoderParts:
    """The modules of a language decoder.

    Attributes:
        spec: Its numbers.
        layers: The layers, each with its cache outside (`layers.DecoderLayer`).
        norm: The norm after them, hidden -> [1, S, C].
        language_model: The model's own decoder, which parity compares with.
        level_inputs: What it takes where features are added behind layers: which rows are visual,
            bool [1, n], and levels f32 [L, k, C] -> arguments by name.
        own_rows: Rows of the second table f32 [1, n, E] -> what both take of them.
        own_inputs: The group of each row i64 [1, S], whose rows see each other (-1 is none) -> what
            the model's own decoder, and the whole model, takes to make its masks.
    """

    spec: DecoderSpec
    layers: tuple[nn.Module, ...]
    norm: nn.Module
    language_model: nn.Module
    level_inputs: Callable[[Tensor, Tensor], dict[str, Any]] = lambda visual, levels: {}
    own_rows: Callable[[Tensor], dict[str, Tensor]] = lambda rows: {}
    own_inputs: Callable[[Tensor], dict[str, Tensor]] = lambda groups: {}

    def own(
        self,
        rows: NDArray[Any],
        positions: NDArray[Any],
        cache: Any = None,
        mask: Tensor | None = None,
        levels: NDArray[Any] | None = None,
        visual: Sequence[int] = (),
        groups: NDArray[Any] | None = None,
    ) -> Any:
        """transformers' output for rows behind those of its cache.

        Args:
            rows: f32 [n, C], with those of a second table behind.
            positions: Rotary positions i32 [n, axes].
            cache: What it gave with the rows before; None begins one.
            mask: Additive, f32 [1, 1, n, T]; without one it makes its own.
            levels: Features of further levels for each visual row, f32 [L, k, C]; None for none.
            visual: The visual rows, k of them.
            groups: The group of each row [n], see `own_inputs`; None where none has one.
        """
        further: dict[str, Any] = {"attention_mask": mask}
        if groups is not None:
            further = self.masking(len(rows), groups)
        if levels is not None and len(visual):
            chosen = torch.zeros(1, len(rows), dtype=torch.bool)
            chosen[0, list(visual)] = True
            further |= self.level_inputs(chosen, torch.from_numpy(levels))
        return self.language_model(
            **self.embedded(torch.from_numpy(rows)),
            position_ids=position_ids(positions),
            cache=cache,
            use_cache=True,
            **further,
        )

    def embedded(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows [n, C] as the model's own forward takes them, with those of a second table."""
        width = self.spec.width
        return {"inputs_embeds": rows[None, :, :width], **self.own_rows(rows[None, :, width:])}

    def masking(self, rows: int, groups: NDArray[Any] | None) -> dict[str, Tensor]:
        """What the model's own forward makes the masks of a first turn of."""
        # Without a mask, transformers takes positions with gaps for several sequences in one.
        masks = {"attention_mask": torch.ones(1, rows, dtype=torch.long)}
        if groups is not None:
            masks |= self.own_inputs(torch.from_numpy(groups)[None].long())
        return masks


@dataclass(frozen=True)
class ModelParts:
    """A vision language model as static modules; nothing here copies a weight.

    Attributes:
        encoder: The vision encoder with its connector.
        pack: Features of all views [1, P*N, C] -> the same tokens in the order of the family's
            `Description.shape`.
        decoder: The language decoder.
        table: Matrices whose rows make the embedding table, in order, without `table_scale`.
        head: Output matrix [V, C]; the same tensor as `table[0]` where the two are tied.
        tied_rows: Its first rows that are `table[0]`, where only these are.
        logit_softcap: Bound of the scores of words; 0 is none.
        logit_scale: Factor of the scores of words.
        pruning: Numbers of a method of site `decoder`, or None.
        layer_table: Matrix of a second table, `DecoderSpec.per_layer`, without its scale; or None.
        stream: What keeps the tokens of a frame of a stream, see `compress.shared.streams`; or
            None.
    """

    encoder: EncoderParts
    pack: nn.Module
    decoder: DecoderParts
    table: tuple[Tensor, ...]
    head: Tensor
    logit_softcap: float = 0.0
    logit_scale: float = 1.0
    pruning: Pruning | None = None
    layer_table: Tensor | None = None
    tied_rows: int = 0
    stream: Any = None

    @property
    def passed_on(self) -> tuple[str, ...]:
        """What the decoder needs of the encoder beside its features, of the kept tokens."""
        pruning = () if self.pruning is None else self.pruning.signals
        return (*pruning, *LEVELS[: len(self.encoder.levels)])

    @property
    def tables(self) -> dict[str, tuple[Tensor, ...]]:
        """The matrices of each table of the host, by its name."""
        further = {} if self.layer_table is None else {"per_layer": (self.layer_table,)}
        return {"embedding": self.table, **further}

    def words(self, ids: NDArray[Any]) -> Tensor:
        """Rows of words as the decoder takes them, [n, C], those of a second table behind."""
        spec = self.decoder.spec
        rows = scaled(rows_of(self.table, ids), spec.table_scale)
        if self.layer_table is None or spec.per_layer is None:
            return rows
        known = np.where(ids < len(self.layer_table), ids, spec.per_layer.visual_row)
        return torch.cat((rows, scaled(self.layer_table[known], spec.per_layer.scale)), dim=-1)

    def scores(self, hidden: Tensor) -> Tensor:
        """Scores of the words [n, V] for rows [n, C] after the last norm."""
        scores = torch.nn.functional.linear(hidden, self.head)
        return capped(scaled(scores, self.logit_scale), self.logit_softcap)

    def word(self, token: int) -> Tensor:
        """The row of a word as the decoder takes it, [1, 1, C]."""
        return self.words(np.asarray([token]))[None]

    @property
    def shared_rows(self) -> int:
        """The first rows of the head that are the embedding table's."""
        return len(self.head) if self.head is self.table[0] else self.tied_rows


def position_ids(positions: NDArray[Any]) -> Tensor:
    """Rotary positions [n, axes] as transformers takes them: [axes, 1, n], of one axis [1, n]."""
    ids = torch.from_numpy(positions).long().T[:, None]
    return ids[0] if len(ids) == 1 else ids
