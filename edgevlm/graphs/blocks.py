"""Cut stages into blocks, and build the module of each block.

A stage is a sequence of modules; a block is a contiguous run of them whose weights fit the block
size (a single module may exceed it). The head is cut by rows of the vocabulary. Blocks only group
the model's modules: no weight is copied.

    vision    VisionBlock     embedding, layers and connector of the encoder
    reduce    ReduceBlock     the method of site `tokens`, after the packing of all views
              StreamBlock     what a stream keeps of a frame, beside the one before
    decoder   DecoderBlock    layers of the decoder; PrunedDecoderBlock where tokens leave in it
    head      HeadBlock       rows of the output matrix
    text      TextBlock       positions, layers and head of a text encoder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.functions import Block
from edgevlm.graphs.embedders import EmbedderParts
from edgevlm.graphs.layers import LayerCall, scaled, split_states
from edgevlm.graphs.merging import merges
from edgevlm.graphs.ops import capped
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.pruning import PrunedDecoderBlock
from edgevlm.graphs.signals import encode, is_rotary, pack
from edgevlm.graphs.visual_shape import VisualShape


def cut(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Split modules of `sizes` bytes into the fewest runs of `limit` bytes at most: (start, stop).

    Runs are filled from the front, so that most have the same shape and share a trace. A module
    without weights never begins one.
    """
    runs: list[tuple[int, int]] = []
    start = total = 0
    for index, size in enumerate(sizes):
        if size and total and total + size > limit:
            runs.append((start, index))
            start, total = index, 0
        total += size
    return [*runs, (start, len(sizes))] if sizes else runs


def cut_rows(rows: int, row_bytes: int, limit: int) -> list[tuple[int, int]]:
    """Split a matrix of `rows` into the fewest runs of nearly equal height: [(start, stop)]."""
    count = -(-rows // max(1, limit // row_bytes))
    height = -(-rows // count)
    return [(start, min(start + height, rows)) for start in range(0, rows, height)]


class VisionBlock(nn.Module):
    """`encode`: pixel_values or hidden -> hidden or features, through the block's modules.

    Size and origin go beside hidden where tokens merge; signals of observed layers follow. What
    the layers take of the view's grid are constants of the block.
    """

    def __init__(self, modules: Sequence[nn.Module], grid: nn.Module | None = None) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(modules)  # this name begins the weights' names in bundles
        self.grid = grid if any(map(is_rotary, modules)) else None

    def forward(self, x: Tensor, *merged: Tensor) -> Tensor | tuple[Tensor, ...]:
        state, signals = encode(list(self.pieces), x, *merged, grid=self.grid)
        if not any(merges(module) for module in self.pieces):
            state = state[:1]  # size and origin are as they came
        outputs = (*state, *signals)
        return outputs if len(outputs) > 1 else outputs[0]


class ReduceBlock(nn.Module):
    """`reduce`: features of all views [1, P*N, C] -> visual_tokens [1, K, C], kept [1, K].

    Where attention is calibrated, log_sizes [1, K] is a third output; what the decoder needs of the
    encoder beside features (`passed_on`: a signal for a method inside it, or features of further
    levels) follows, of the kept tokens, [1, K] or [1, K, C]. A level is taken at the kept position,
    also where a method merges tokens.
    Signals of all views, [1, P*N] or [1, P*N, E], are further inputs, the method's own first.
    """

    def __init__(
        self, pack: nn.Module, method: Any, shape: VisualShape, passed_on: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.pack, self.method, self.shape = pack, method, shape
        self.passed_on = tuple(passed_on)

    def forward(self, features: Tensor, *signals: Tensor) -> tuple[Tensor, ...]:
        names = signal_names(self.method.signals, self.passed_on)
        named = zip(names, signals, strict=True)
        packed = {name: pack(self.pack, signal) for name, signal in named}
        outputs = reduced(self.method, self.pack(features), self.shape, packed, self.passed_on)
        # Where all are kept the output would be the input itself, and could not have its own name.
        return outputs[0].clone(), *outputs[1:]


class StreamBlock(nn.Module):
    """`stream`: features of a view and of the one before [1, N, C] -> what is kept, as `reduce`.

    Tokens are [1, K, C]; their positions [1, K] count within the view.
    """

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method

    def forward(
        self, previous: Tensor, features: Tensor, *signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens, positions = self.method(previous, features, *signals)
        return tokens.clone(), positions  # as in `ReduceBlock`


def signal_names(own: Sequence[str], passed_on: Sequence[str]) -> tuple[str, ...]:
    """Signals that the encoder gives: those of the method of site `tokens`, then others."""
    return tuple(dict.fromkeys((*own, *passed_on)))


def reduced(
    method: Any,
    features: Tensor,
    shape: Any,
    signals: Mapping[str, Tensor],
    passed_on: Sequence[str],
) -> tuple[Tensor, ...]:
    """What the method of site `tokens` gives, then each signal passed on [1, K] of kept tokens.

    Args:
        method: The method.
        features: f32 [1, N, C].
        shape: Token grids that the method sees.
        signals: All signals, by name.
        passed_on: Names of those that the decoder needs, f32 [1, N] or [1, N, C] each.
    """
    outputs = method(features, shape=shape, **{name: signals[name] for name in method.signals})
    if not passed_on:
        return tuple(outputs)
    kept = outputs[1][0].to(torch.int64)
    return (*outputs, *(signals[name].index_select(1, kept) for name in passed_on))


class DecoderBlock(nn.Module):
    """`prefill`, `decode`: the block's layers, each with its own past; then the norm, if last.

    Rows go in and out as [1, S, C]; between layers of several residual streams A they have A * C
    numbers, between blocks too.
    cos and sin are the first of the rotary tables that these layers use; the others follow the
    position, two each. Then comes `count` where a call of several rows has recurrent layers, and
    bias [1, 1, 1, T] where attention is calibrated. `prefill` then takes what is added to the
    output of each of the layers `levels`, counted in the block, [1, S, C]. Where layers are `gated`
    by a second table, the tokens' rows of the first follow, [1, S, C], and what each layer gets of
    the second, [1, S, E]. The states are last.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        norm: nn.Module | None,
        levels: Sequence[int] = (),
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.norm, self.levels = norm, tuple(levels)
        self.tables = sorted({layer.numbers.table for layer in layers})
        self.gated = gated

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        position: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        further, states = split_states(self.layers, rest)
        gates: Sequence[Tensor] = ()
        if self.gated:
            further, gates = further[: -1 - len(states)], further[-1 - len(states) :]
        first = 2 * len(self.tables) - 2
        pairs, further = (cos, sin, *further[:first]), further[first:]
        tables = {table: pairs[2 * at : 2 * at + 2] for at, table in enumerate(self.tables)}
        count = None
        if any(layer.recurrent for layer in self.layers) and hidden.shape[1] > 1:
            count, *further = further
        bias = next((x for x in further if x.dim() != 3), None)
        added = dict(zip(self.levels, (x for x in further if x.dim() == 3), strict=False))
        calls = [LayerCall(tables, mask, position, bias, count)] * len(states)
        if self.gated:
            embeds, *rows = gates
            calls = [replace(calls[0], embeds=embeds, row=row) for row in rows]
        present: list[Tensor] = []
        for index, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            hidden, *after = layer.step(hidden, calls[index], state)
            hidden = hidden + added[index] if index in added else hidden
            present += after  # nothing, of a layer that reads another one's
        return (hidden if self.norm is None else self.norm(hidden), *present)


class HeadBlock(nn.Module):
    """`logits`, `check`: hidden [1, n, C] -> logits [n, rows] of this block's rows of the words.

    They are multiplied by `scale`; `softcap` is their bound, 0 is none.
    """

    def __init__(
        self, matrix: Tensor, rows: tuple[int, int], softcap: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.rows = nn.Parameter(matrix.detach()[rows[0] : rows[1]], requires_grad=False)  # a view
        self.softcap, self.scale = softcap, scale

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"softcap={self.softcap}, scale={self.scale}"

    def forward(self, hidden: Tensor) -> Tensor:
        scores = torch.nn.functional.linear(hidden[0], self.rows)
        return capped(scaled(scores, self.scale), self.softcap)


class TextBlock(nn.Module):
    """`encode` of a text encoder: rows or hidden [1, S, C] -> hidden, or the embedding [1, E]."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(modules)

    def forward(self, hidden: Tensor, *end: Tensor) -> Tensor:
        *first, last = self.pieces
        for module in first:
            hidden = module(hidden)
        embedding: Tensor = last(hidden, *end)
        return embedding


Builder = Callable[[Block, ModelParts, Any, VisualShape], nn.Module]


def build(block: Block, parts: ModelParts, method: Any, shape: VisualShape) -> nn.Module:
    """The module of a block of a vision language model.

    Args:
        block: A block of the plan; its stage and span say what it holds.
        parts: The model, with or without memory for its weights.
        method: The method of site `tokens`.
        shape: Token grids that the method sees.
    """
    return BUILDERS[block.stage](block, parts, method, shape).eval().requires_grad_(False)


def build_encoder(block: Block, parts: EmbedderParts) -> nn.Module:
    """The module of a block of an image encoder, or of its text encoder."""
    if parts.text is not None and block.stage == "text":
        module: nn.Module = TextBlock(parts.text.modules[slice(*block.span)])
    else:
        module = VisionBlock(parts.encoder.modules[slice(*block.span)], parts.encoder.grid)
    return module.eval().requires_grad_(False)


def _vision(block: Block, parts: ModelParts, method: Any, shape: VisualShape) -> nn.Module:
    return VisionBlock(parts.encoder.modules[slice(*block.span)], parts.encoder.grid)


def _reduce(block: Block, parts: ModelParts, method: Any, shape: VisualShape) -> nn.Module:
    if block.span[0]:
        return StreamBlock(parts.stream)
    return ReduceBlock(parts.pack, method, shape, parts.passed_on)


def _decoder(block: Block, parts: ModelParts, method: Any, shape: VisualShape) -> nn.Module:
    (start, stop), decoder = block.span, parts.decoder
    layers = decoder.layers[start:stop]
    norm = decoder.norm if stop == len(decoder.layers) else None
    if parts.pruning is None:
        levels = [layer - start for layer in decoder.spec.levels if start <= layer < stop]
        return DecoderBlock(layers, norm, levels, decoder.spec.per_layer is not None)
    return PrunedDecoderBlock(layers, norm, start, parts.pruning, decoder.norm)


def _head(block: Block, parts: ModelParts, method: Any, shape: VisualShape) -> nn.Module:
    return HeadBlock(parts.head, block.span, parts.logit_softcap, parts.logit_scale)


# What makes the module of a block, by its stage.
BUILDERS: dict[str, Builder] = {
    "vision": _vision,
    "reduce": _reduce,
    "decoder": _decoder,
    "head": _head,
}
