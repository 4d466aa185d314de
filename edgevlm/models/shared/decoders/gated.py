"""What decoder layers of Gemma 3n and Gemma 4 compute beside those of Gemma 3.

A second table has a row of numbers for each layer beside a word's embedding (per-layer embeddings).
A layer adds to its part of that row a projection of the embedding itself, normed, and gates its own
output by the sum. Values are normed head by head, without a weight. The last layers have no keys
and values of their own: they read the cache of an earlier layer of their type.

Sources: Gemma 3n and MatFormer (arXiv 2310.07707) as in transformers' `models/gemma3n`;
`models/gemma4`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import LayerRows
from edgevlm.bundle.kinds.shared.states import CacheSpec
from edgevlm.graphs.layers import DecoderLayer, LayerCall, LayerNumbers, rms_norm
from edgevlm.graphs.ops import outside_window, written_out
from edgevlm.graphs.parts import DecoderParts


class LayerInput(nn.Module):
    """What gates a layer: embeds [1, S, C] and its part of rows of the second table, [1, S, E].

    Args:
        language_model: transformers' text model.
        layer: Which layer.
    """

    def __init__(self, language_model: Any, layer: int) -> None:
        super().__init__()
        width = language_model.hidden_size_per_layer_input
        matrix = language_model.per_layer_model_projection.weight.detach()
        columns = slice(layer * width, (layer + 1) * width)
        self.projection = nn.Linear(matrix.shape[1], width, bias=False, device="meta")
        self.projection.weight = nn.Parameter(matrix[columns], requires_grad=False)  # a view
        norm = language_model.per_layer_projection_norm
        # A copy: in a trace a tensor of two layers has one name alone.
        self.weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
        self.eps, self.scale = norm.eps, matrix.shape[1] ** -0.5

    def forward(self, embeds: Tensor, row: Tensor) -> Tensor:
        x = self.projection(embeds) * self.scale
        own = nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        return (own + row) * 0.5**0.5


class ReadingLayer(DecoderLayer):
    """A decoder layer of normed values, which may read the cache of an earlier one.

    A layer whose cache has a source has no keys and values of its own: its state is that of the
    source with the new rows, and it gives none.
    """

    ones: Tensor

    def __init__(self, layer: Any, heads: int, cache: CacheSpec, numbers: LayerNumbers) -> None:
        super().__init__(layer, heads, cache.heads, numbers)
        self.reads = cache.source is not None
        self.own_input: LayerInput | None = None
        with torch.device("cpu"):  # values are normed without a weight
            size = layer.self_attn.head_dim
            self.register_buffer("ones", torch.ones(size), persistent=False)

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"{self.numbers}, reads={self.reads}"

    def step(self, x: Tensor, call: LayerCall, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The layer's output, and its state after the call where it has one of its own."""
        after: Sequence[Tensor] = ()
        if self.reads:
            x = self.feed(self.mixed(x, self._read(x, call, *state)))
        else:
            x, *after = super().step(x, call, state)
        return (x, *after)

    def gated(self, x: Tensor, call: LayerCall) -> Tensor:
        """A projection of rows [1, S, C], gated by their rows of the second table, [1, S, C]."""
        assert self.own_input is not None
        own, layer = self.own_input(call.embeds, call.row), self.layer
        projected = layer.per_layer_projection(layer.act_fn(layer.per_layer_input_gate(x)) * own)
        return rms_norm(layer.post_per_layer_input_norm, projected)

    def values(self, normed: Tensor) -> Tensor:
        """Values as the cache holds them, [1, S, G*D]; those of some layers are keys."""
        attn, size = self.layer.self_attn, self.ones.shape[0]
        made = (attn.k_proj if attn.v_proj is None else attn.v_proj)(normed)
        by_head = made.reshape(1, -1, size)
        epsilon = attn.v_norm.eps
        return nn.functional.rms_norm(by_head, (size,), self.ones, epsilon).reshape(made.shape)

    def _read(self, x: Tensor, call: LayerCall, keys: Tensor, values: Tensor) -> Tensor:
        """Attention to another layer's cache, which has the new rows, [1, S, H*D]."""
        numbers, rows, total = self.numbers, x.shape[1], keys.shape[2]
        query = self.queries(self.normed(x), *call.tables[numbers.table])
        seen = self._seen(x, call.mask, call.position)
        if 0 < numbers.window < total:
            seen = seen + outside_window(call.position, rows, total, numbers.window)
        scale, softcap = numbers.score_scale, numbers.softcap
        return written_out(query, keys, values, seen, self.heads, scale, softcap)


class GatedLayer(ReadingLayer):
    """A decoder layer that gets its row of the second table, and is scaled then (Gemma 4)."""

    def step(self, x: Tensor, call: LayerCall, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The layer's output, and its state after the call where it has one of its own."""
        x, *after = super().step(x, call, state)
        if self.own_input is not None:
            x = x + self.gated(x, call)
        return (x * self.layer.layer_scalar, *after)


def with_gates(decoder: DecoderParts, language_model: Any) -> DecoderParts:
    """A decoder whose layers take rows of the second table, if there is one."""
    if decoder.spec.per_layer is None:
        return decoder
    for index, layer in enumerate(decoder.layers):
        layer.own_input = LayerInput(language_model, index)
    count = len(decoder.layers)

    def own_rows(rows: Tensor) -> dict[str, Tensor]:
        """Rows of the second table [1, n, E] as transformers' model takes them."""
        return {"per_layer_inputs": rows.reshape(*rows.shape[:2], count, -1)}

    return replace(decoder, own_rows=own_rows)


def layer_rows(text: Any) -> LayerRows | None:
    """Numbers of the second table, whose row of padding stands for a visual token."""
    columns = text.hidden_size_per_layer_input
    return LayerRows(columns, sqrt(columns), text.pad_token_id) if columns else None


def side_by_side(text: Any) -> dict[str, tuple[int, int]]:
    """Matrices with numbers of all layers side by side, by the end of the name: axis and size."""
    size = text.num_hidden_layers * (text.hidden_size_per_layer_input or 0)
    return {
        "embed_tokens_per_layer.weight": (1, size),
        "per_layer_model_projection.weight": (0, size),
    }


def gemma4_numbers(text: Any, layer: int) -> LayerNumbers:
    """Numbers of a layer of Gemma 4, windows and rotary tables left out."""
    head_size = text.per_layer_config[layer].head_dim
    return LayerNumbers(head_norms=True, added_norms=True, score_scale=sqrt(head_size))
