"""Site `decoder`: visual tokens leave between the layers of the language model.

A method of this site (`compress/decoder/`) plans how many visual tokens each layer sees. The prompt
then runs as one call (`prefill` of S rows), for what stays is chosen by its last row:

    hidden       [1, s, C]  the rows that are left, in order; s falls from block to block
    cos, sin     [1, s, D]  their rotary tables
    visual_rows  [1, k]     i32, which of them are visual tokens
    last         [1]        i32, which is the last of the prompt; what follows fills up the call

A method may carry a state from block to block: a number for each row, which the first block makes
of what enters the decoder and which goes with the rows that are left (`carried` [1, s]). It is made
of the rows alone (`host.carried` is `prompt`: SparseVLM's raters), or of a signal of the encoder at
each visual token, which `reduce` gives (`vision`: MustDrop's key tokens). The first block then
takes `visual_signal` [1, k], every other one `carried`.

The cache of a layer is shorter by the visual tokens that left before it. `decode` counts from the
prompt's own length, and each layer subtracts what left before it if `pruned` is 1; it is 0 in a
chat without an image. The last block gives the prompt's last row alone.

A method looks at the layer before which tokens leave (`after` false), or at the one after which
they leave (`after` true), as its paper has it. Rows keep their positions, or are numbered anew
(`contiguous`): then tables are cut to the rows that are left, and those of `decode` turned back by
what is gone, cos(p - r) = cos p cos r + sin p sin r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.layers import DecoderLayer, LayerCall, split_states
from edgevlm.graphs.ops import capped
from edgevlm.graphs.selection import marked, marked_indices


@dataclass(frozen=True)
class Pruning:
    """Numbers of a method of site `decoder`.

    Attributes:
        method: The method.
        counts: Visual tokens that each layer sees.
        total: Visual tokens before the first layer.
        frequencies: Inverse frequencies of the rotary tables, [D / 2].
        whole: Of the visual tokens that each layer sees those that no other was merged into, as
            the method's plan has them; empty is all of them.
    """

    method: Any
    counts: tuple[int, ...]
    total: int
    frequencies: tuple[float, ...]
    whole: tuple[int, ...] = ()

    def gone(self, layer: int) -> int:
        """Visual tokens that left before a layer: rows that its cache has less."""
        return self.total - self.counts[layer]

    @property
    def choosing(self) -> tuple[int, ...]:
        """Layers by which tokens are chosen, where some but not all leave."""
        pairs = enumerate(zip(self.counts[1:], self.counts, strict=False), 1)
        return tuple(i - self.method.after for i, (here, before) in pairs if 0 < here < before)

    @property
    def norming(self) -> tuple[int, ...]:
        """Layers whose block needs the norm after the last layer too: the method compares by it."""
        return self.choosing if self.method.final_norm else ()

    @property
    def signals(self) -> tuple[str, ...]:
        """The encoder's signal that the carried state is made of."""
        signals: tuple[str, ...] = self.method.signals if self.choosing else ()
        return signals

    @property
    def carried(self) -> str:
        """What the carried state is made of, `prompt` or `vision`; empty where none is carried."""
        if not self.method.carries or not self.choosing:
            return ""
        return "vision" if self.signals else "prompt"

    def entering(self, layer: int) -> int:
        """Visual tokens among the rows that reach a layer, or come out of the last one."""
        if layer == len(self.counts) or not self.method.after:
            return self.counts[layer - 1] if layer else self.total
        return self.counts[layer]


@dataclass(frozen=True)
class Look:
    """What a method sees of one layer.

    Attributes:
        layer: The layer.
        hidden: Its input, f32 [1, s, C].
        cos: Rotary table f32 [1, s, D].
        sin: Rotary table f32 [1, s, D].
        visual: Rows of the visual tokens, i64 [k], ascending.
        last: The prompt's last row, i64 [1].
        carried: The method's state, f32 [s], if it carries one.
        final_norm: The norm after the last layer, if the method asks for it.
        whole: Of the tokens that stay those that no other is merged into; None is all of them.
    """

    layer: DecoderLayer
    hidden: Tensor
    cos: Tensor
    sin: Tensor
    visual: Tensor
    last: Tensor
    carried: Tensor | None = None
    final_norm: Any = None
    whole: int | None = None

    def tokens(self) -> Tensor:
        """The visual tokens, f32 [1, k, C]."""
        return self.hidden.index_select(1, self.visual)

    def queries(self, rows: Tensor) -> Tensor:
        """Rotated queries of some rows i64 [R]: f32 [heads, R, D]."""
        cos, sin = self.cos.index_select(1, rows), self.sin.index_select(1, rows)
        normed, heads = self._normed().index_select(1, rows), self.layer.heads
        query = self.layer.queries(normed, cos, sin)
        return query.reshape(rows.shape[0], heads, -1).transpose(0, 1)

    def keys(self) -> Tensor:
        """Rotated keys of all rows, repeated for each query head: f32 [heads, s, D]."""
        groups = self.layer.kv_heads
        key = self.layer.keys(self._normed(), self.cos, self.sin)
        split = key.reshape(key.shape[1], groups, -1).transpose(0, 1)
        return split.repeat_interleave(self.layer.heads // groups, dim=0)

    def scores(self, rows: Tensor) -> Tensor:
        """Scores of some rows i64 [R] for all rows, -1e4 after each: f32 [heads, R, s]."""
        numbers = self.layer.numbers
        queries = self.queries(rows)
        scale = numbers.score_scale * queries.shape[-1] ** -0.5
        scores = capped(queries * scale @ self.keys().transpose(1, 2), numbers.softcap)
        return torch.where(self.rows > rows.unsqueeze(1), -1e4, scores)

    def attention(self, rows: Tensor) -> Tensor:
        """Attention of some rows i64 [R] to all rows up to each: f32 [heads, R, s]."""
        return self.scores(rows).softmax(-1)

    @property
    def rows(self) -> Tensor:
        """Numbers of all rows, i64 [s]."""
        return torch.arange(self.hidden.shape[1])

    @property
    def words(self) -> Tensor:
        """Which rows are words of the question, after the image, bool [s]."""
        return (self.rows > self.visual[-1:]) & (self.rows <= self.last)

    def last_to_visual(self) -> Tensor:
        """Attention of the prompt's last row to each visual token, mean over heads: f32 [k]."""
        return self.attention(self.last).mean(0)[0].index_select(0, self.visual)

    def _normed(self) -> Tensor:
        return self.layer.normed(self.hidden)


class PrunedDecoderBlock(nn.Module):
    """`prefill` of a whole prompt and `decode` of one row, over layers with caches of their own.

    The two differ: a call with one row is `decode`.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        norm: nn.Module | None,
        first: int,
        pruning: Pruning,
        final_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.norm = norm
        self.first, self.pruning = first, pruning
        here = range(first, first + len(layers))
        if norm is None and any(layer in here for layer in pruning.norming):
            self.final_norm = final_norm
        else:  # a block with the last layer has it anyway
            self.final_norm = None

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        layers = slice(max(0, self.first - 1), self.first + len(self.layers) + 1)
        seen, whole = self.pruning.counts[layers], self.pruning.whole[layers]
        method, merged = self.pruning.method, f" whole {whole}" if whole else ""
        return f"{seen} of {self.pruning.total},{merged} {type(method).__module__}, {vars(method)}"

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, *rest: Tensor) -> Any:
        if hidden.shape[1] == 1:
            return self._decode(hidden, cos, sin, *rest)
        return self._prefill(hidden, cos, sin, *rest)

    def _decode(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, position: Tensor, pruned: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        present: list[Tensor] = []
        _, states = split_states(self.layers, past)
        for index, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            gone = self.pruning.gone(self.first + index) * pruned
            row, turned = position - gone, (cos, sin)
            mask = _mask(layer, state, row)
            if self.pruning.method.contiguous:
                turned = self._turned_back(cos, sin, gone)
            hidden, *after = layer.step(hidden, LayerCall({0: turned}, mask, row), state)
            present += after
        return (hidden if self.norm is None else self.norm(hidden), *present)

    def _prefill(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, visual_rows: Tensor, last: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        carried, states = split_states(self.layers, rest)
        entered, present = self.pruning.entering(self.first), list[Tensor]()
        rows, end = visual_rows[0, :entered].to(torch.int64), last.to(torch.int64)
        start, counts = torch.zeros(1, dtype=torch.int32), self.pruning.counts
        norm = self.final_norm if self.norm is None else self.norm
        look = Look(self.layers[0], hidden, cos, sin, rows, end, final_norm=norm)
        look = replace(look, carried=self._carried(look, carried))
        for index, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            here, after = self.first + index, self.pruning.method.after
            look = replace(look, layer=layer)
            if not after:
                look = self._without(look, look.hidden, here)
            hidden, *new = layer.step(look.hidden, self._call(look, state, start), state)
            present += new
            leave = after and here + 1 < len(counts)
            look = self._without(look, hidden, here + 1 if leave else here)
        return (*self._given_on(look, entered), *present)

    def _call(self, look: Look, state: Sequence[Tensor], start: Tensor) -> LayerCall:
        """What a layer takes of the rows that are left of a prompt."""
        line = torch.arange(look.hidden.shape[1]).unsqueeze(1)
        mask = _mask(look.layer, state, line)
        count = (look.last + 1).to(torch.int32) if look.layer.recurrent else None
        return LayerCall({0: (look.cos, look.sin)}, mask, start, count=count)

    def _carried(self, look: Look, state: Sequence[Tensor]) -> Tensor | None:
        """The method's state f32 [s] before the first layer of the block, if it carries one."""
        if not self.pruning.carried:
            return None
        if self.first:
            return state[0][0]
        carried: Tensor = self.pruning.method.carry(look, *(signal[0] for signal in state))
        return carried

    def _without(self, look: Look, hidden: Tensor, layer: int) -> Look:
        """What is left of `hidden`, and of what goes with it, when `layer` comes next."""
        kept = self.pruning.counts[layer]
        if kept >= look.visual.shape[0]:
            return replace(look, hidden=hidden)
        whole = self.pruning.whole[layer] if self.pruning.whole else None
        out, cos, sin, rows, last, *carried = self._prune(replace(look, whole=whole), hidden, kept)
        state = carried[0] if carried else None
        return replace(look, hidden=out, cos=cos, sin=sin, visual=rows, last=last, carried=state)

    def _given_on(self, look: Look, entered: int) -> tuple[Tensor, ...]:
        """Outputs beside the caches: of the last block one row, of others what has changed."""
        if self.norm is not None:
            return (self.norm(look.hidden.index_select(1, look.last)),)
        carried = () if look.carried is None else (look.carried.unsqueeze(0),)
        if look.visual.shape[0] == entered:
            return (look.hidden, *(() if self.first else carried))
        kept = look.visual.to(torch.int32).unsqueeze(0)
        kept = kept if look.visual.shape[0] else torch.zeros(1, 1, dtype=torch.int32)
        return (look.hidden, look.cos, look.sin, kept, look.last.to(torch.int32), *carried)

    def _prune(self, look: Look, hidden: Tensor, kept: int) -> tuple[Tensor, ...]:
        """Rows without the visual tokens that go, their tables, which are visual, and the last.

        The state that goes with the rows follows where there is one.
        """
        total, gone = hidden.shape[1], look.visual.shape[0] - kept
        if kept == 0:
            stays = ~marked(look.visual, total)
            chosen, merged = look.visual[:0], None
        else:
            merged, index = self.pruning.method(look, hidden, kept)
            chosen = look.visual.index_select(0, index)
            stays = marked(chosen, total) | ~marked(look.visual, total)
        left = marked_indices(stays, total - gone)
        row_after = stays.to(torch.int64).cumsum(0) - 1
        rows = row_after.index_select(0, chosen)
        out = hidden.index_select(1, left)
        if merged is not None:
            here = (torch.arange(total - gone).unsqueeze(1) == rows).float()  # [s, k]
            out = torch.where(here.sum(1, keepdim=True) > 0, here @ merged, out)
        if self.pruning.method.contiguous:
            tables = look.cos[:, : total - gone], look.sin[:, : total - gone]
        else:
            tables = look.cos.index_select(1, left), look.sin.index_select(1, left)
        state = (out, *tables, rows, row_after.index_select(0, look.last))
        return state if look.carried is None else (*state, look.carried.index_select(0, left))

    def _turned_back(self, cos: Tensor, sin: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
        """Tables of a position from those of the position plus `gone`."""
        half = torch.tensor(self.pruning.frequencies)
        angle = torch.cat((half, half)) * gone
        c, s = angle.cos(), angle.sin()
        return cos * c + sin * s, sin * c - cos * s


def _mask(layer: Any, state: Sequence[Tensor], line: Tensor) -> Tensor:
    """The mask of rows at cache rows i32 [1] or [s, 1]; a recurrent layer reads none."""
    if layer.recurrent:
        return torch.zeros(())
    mask = torch.where(torch.arange(state[0].shape[2]) > line, -1e4, 0.0)
    return mask[None, None, None] if mask.dim() == 1 else mask[None, None]
