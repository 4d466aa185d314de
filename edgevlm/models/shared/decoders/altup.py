"""What layers of Gemma 3n compute beside those of Gemma 4: streams, Laurel, few activations.

A row [C] goes through the layers as A residual streams (alternating updates). A layer predicts all
of them by products of A x A numbers, which each row chooses, computes one, the active one, and
corrects the others by how far the prediction of it was off. Beside attention stands a product of
low rank (Laurel, a learned augmented residual), and the first layers keep of the MLP's activations
what lies so many deviations above a row's mean: as if the largest were chosen, without a sort.

Rewrites, each exact: streams are columns side by side between layers, [1, S, A*C], and no first
axis; what the first layer and the last norm do with them is theirs, not the model's; the number of
deviations is a constant.

Sources: AltUp (arXiv 2301.13310), LAuReL (arXiv 2411.07501), transformers' `models/gemma3n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import LayerRows
from edgevlm.bundle.kinds.shared.states import CacheSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import LayerCall, LayerNumbers, rms_norm
from edgevlm.graphs.parts import DecoderParts
from edgevlm.models.shared.decoders.gated import ReadingLayer

LEAST_SQUARE = 1e-5  # mean of squares of a projected stream that it is divided by the root of


class AltUp(nn.Module):
    """Predicts the streams of rows before a layer, and corrects them behind it, [S, A, C] each.

    The three small matrices are copies, turned: products with them are never rounded to a scheme.
    One stream is [1, S, C], for targets take norms of three dimensions.
    """

    def __init__(self, altup: Any) -> None:
        super().__init__()
        config = altup.config
        self.active, self.width = config.altup_active_idx, config.hidden_size
        self.norm = altup.router_norm
        self.router = _turned(altup.modality_router)  # [C, A]
        self.prediction = _turned(altup.prediction_coefs)  # [A, A*A]
        self.correction = _turned(altup.correction_coefs)  # [A, A]
        # Of the active stream, before it is gated.
        self.stretch = altup.correct_output_scale if config.altup_correct_scale else None

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"active={self.active}, width={self.width}"

    def predict(self, streams: Tensor) -> Tensor:
        """Each stream with what the others tell of it."""
        rows, count, _ = streams.shape
        mixing = self._routed(self.of(streams)) @ self.prediction
        return streams + torch.bmm(mixing.reshape(rows, count, count), streams)

    def correct(self, predicted: Tensor, computed: Tensor) -> Tensor:
        """All streams by how far the active one, as it was computed, is from its prediction."""
        shares = self._routed(computed) @ self.correction + 1  # [1, S, A]
        difference = computed - self.of(predicted)
        return predicted + difference.transpose(0, 1) * shares.reshape(len(predicted), -1, 1)

    def of(self, streams: Tensor) -> Tensor:
        """The active stream."""
        return streams[:, self.active].unsqueeze(0)

    def stretched(self, streams: Tensor) -> Tensor:
        """The active stream as a layer's gate takes it."""
        active = self.of(streams)
        return active if self.stretch is None else active * self.stretch

    def _routed(self, active: Tensor) -> Tensor:
        """What the active stream chooses by, [1, S, A]."""
        return torch.tanh(rms_norm(self.norm, active) @ self.router / self.width)


class AltUpLayer(ReadingLayer):
    """A decoder layer of Gemma 3n, [1, S, A*C] -> same; the first of a model takes [1, S, C]."""

    def __init__(self, layer: Any, heads: int, cache: CacheSpec, numbers: LayerNumbers) -> None:
        super().__init__(layer, heads, cache, numbers)
        self.enter: nn.Module | None = None

    def step(self, x: Tensor, call: LayerCall, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The layer's output, and its state after the call where it has one of its own."""
        altup, rows = self.layer.altup, x.shape[1]
        x = x if self.enter is None else self.enter(x)
        predicted = altup.predict(x.reshape(rows, -1, altup.width))
        computed, *after = super().step(altup.of(predicted), call, state)
        streams = altup.correct(predicted, computed)
        added = self.gated(altup.stretched(streams), call)
        # Whichever is active, the first one gets nothing.
        others = streams[:, 1:] + added.transpose(0, 1)
        return torch.cat((streams[:, :1], others), dim=1).reshape(1, rows, -1), *after

    def mixed(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's input, what attention adds to it, and beside it the product of low rank."""
        # Normed as before attention, which is one operator to engines.
        laurel, h = self.layer.laurel, self.normed(x)
        beside = rms_norm(laurel.post_laurel_norm, laurel.linear_right(laurel.linear_left(h)))
        return (super().mixed(x, mixed) + (h + beside)) * 0.5**0.5


class Layer(nn.Module):
    """The modules of transformers' layer, with AltUp and an MLP of few activations as above."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn, self.laurel, self.altup = layer.self_attn, layer.laurel, AltUp(layer.altup)
        self.mlp = SparseMlp(layer.mlp) if layer.mlp.activation_sparsity > 0 else layer.mlp
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.pre_feedforward_layernorm = layer.pre_feedforward_layernorm
        self.post_feedforward_layernorm = layer.post_feedforward_layernorm
        self.act_fn, self.per_layer_input_gate = layer.act_fn, layer.per_layer_input_gate
        self.per_layer_projection = layer.per_layer_projection
        self.post_per_layer_input_norm = layer.post_per_layer_input_norm


class SparseMlp(nn.Module):
    """A gated MLP, [1, S, C] -> same, of what lies `deviations` above a row's mean of its gates."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = mlp.act_fn
        self.deviations = NormalDist().inv_cdf(mlp.activation_sparsity)

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"deviations={self.deviations}"

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate_proj(x)
        centred = gates - gates.mean(-1, keepdim=True)
        deviation = centred.square().mean(-1, keepdim=True).sqrt()
        largest = torch.relu(centred - deviation * self.deviations)
        made: Tensor = self.down_proj(self.act_fn(largest) * self.up_proj(x))
        return made


class Enter(nn.Module):
    """The streams of rows, the row itself first: [1, S, C] -> [1, S, A*C]."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.projections = language_model.altup_projections

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, *(_as_long(p(x), x) for p in self.projections)), dim=-1)


class Leave(nn.Module):
    """The mean of the streams, made as long as the first, normed: [1, S, A*C] -> [1, S, C].

    Args:
        language_model: transformers' text model.
        norm: Its last norm.
    """

    def __init__(self, language_model: Any, norm: nn.Module) -> None:
        super().__init__()
        self.projections, self.norm = language_model.altup_unembed_projections, norm

    def forward(self, x: Tensor) -> Tensor:
        count = len(self.projections) + 1
        first, *others = torch.split(x, x.shape[-1] // count, dim=-1)
        total = first
        for projection, stream in zip(self.projections, others, strict=True):
            total = total + _as_long(projection(stream), first)
        normed: Tensor = self.norm(total / count)
        return normed


def with_streams(decoder: DecoderParts, language_model: Any) -> DecoderParts:
    """A decoder whose first layer makes the streams, and whose last norm is of one row again."""
    first: Any = decoder.layers[0]
    first.enter = Enter(language_model)
    return replace(decoder, norm=Leave(language_model, decoder.norm))


def numbers(text: Any, layer: int) -> LayerNumbers:
    """Numbers of a layer, windows and rotary tables left out."""
    return LayerNumbers(head_norms=True, added_norms=True, score_scale=sqrt(text.head_dim))


def layer_rows(text: Any) -> LayerRows:
    """Numbers of the second table; a word beyond it, as that of a visual token, has its row 0.

    Raises:
        PlanError: If it has none.
    """
    columns = text.hidden_size_per_layer_input
    if not columns:
        raise PlanError(
            "hidden_size_per_layer_input is 0, and layers here are gated by a second table; correct"
            " config.json"
        )
    return LayerRows(columns, sqrt(columns), visual_row=0)


def streams(text: Any) -> int:
    """A, the streams of a row.

    Raises:
        PlanError: For numbers that the layers here have no form for, naming the key.
    """
    count, active = text.altup_num_inputs, text.altup_active_idx
    if type(count) is not int or not 2 <= count <= 16:
        raise PlanError(f"altup_num_inputs is {count}, expected 2 to 16; correct config.json")
    if type(active) is not int or not 0 <= active < count:
        raise PlanError(
            f"altup_active_idx is {active} of {count} streams, expected 0 to {count - 1}; correct"
            " config.json"
        )
    for share in text.activation_sparsity_pattern:
        if not 0 <= share < 1:
            raise PlanError(
                f"activation_sparsity_pattern has {share}, expected shares from 0 to below 1;"
                " correct config.json"
            )
    return int(count)


def _turned(linear: Any) -> nn.Parameter:
    """The matrix of a layer [out, in] as [in, out]."""
    return nn.Parameter(linear.weight.detach().T.contiguous(), requires_grad=False)


def _as_long(x: Tensor, like: Tensor) -> Tensor:
    """Rows [1, S, C], each with the root mean square of another."""
    own = x.square().mean(-1, keepdim=True).clamp(min=LEAST_SQUARE).sqrt()
    return x * like.square().mean(-1, keepdim=True).sqrt() / own
