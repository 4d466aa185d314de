"""Signals: what the encoder gives to methods beside features, attention and keys of a layer.

Of the layer that gives the features, or the first one, from queries and keys that it has anyway:

    cls_attention         [1, N]     attention of the class token to each token, mean of heads
    early_cls_attention   [1, N]     the same in the first layer
    keys                  [1, N, D]  keys, mean of heads
    global_attention      [1, N]     mean attention of the global tokens: those that receive more
                                     than `global_times` of the method what a token receives in
                                     the mean, and the one that receives most (VFlowOpt, arXiv
                                     2508.05211)
    hidden                [1, N, C]  the layer's output, before the connector

Of the last layer, which may come after it (LLaVA takes features from the last but one). It is then
computed up to queries and keys, behind the connector, which gives these signals:

    cls_logits            [1, N]     scores of the class token before softmax, mean of heads
    last_cls_attention    [1, N]     its attention, mean of heads
    flat_cls_attention    [1, N]     its attention, as if the layer had one head
    flat_keys             [1, N, C]  keys of all heads side by side

Of a layer that the decoder has features of too (DeepStack), whatever methods ask for:

    level_0, level_1, …   [1, N, C]  the layer's output, through a connector of its own

Of the pixels, taken back to 8 bits:

    patch_entropy         [1, N]     softmax over a view of the entropy of a patch's grey values

The class token itself is left out. An encoder without one has no such row; its stand-in is what a
token receives, mean of all queries, as VisionZip does for such encoders (arXiv 2412.04467, section
3.2). It needs all N x N scores of one layer, once.

A connector that folds patches into a token folds their signals too: the token has their mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import LEVELS, ImageSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import QueryKey
from edgevlm.graphs.merging import MergingLayer, size_bias
from edgevlm.graphs.ops import attention_scores
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.selection import entropy

EARLY, GLOBAL, LOGITS = "early_cls_attention", "global_attention", "cls_logits"
LAST = "last_cls_attention"
HIDDEN, ENTROPY = "hidden", "patch_entropy"
KEYS, FLAT = ("keys", "flat_keys"), ("flat_cls_attention", "flat_keys")
OF_LAST_LAYER = (LOGITS, LAST, *FLAT)


class Observed(nn.Module):
    """A module of the encoder that also gives signals: its inputs -> its outputs, and each signal.

    It is a layer, and the signals are that layer's.
    """

    layer: Any

    def __init__(
        self,
        layer: nn.Module,
        names: Sequence[str],
        class_token: bool,
        fold: nn.Module,
        global_times: float = 0.0,
        levels: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.layer, self.names = layer, tuple(names)
        self.levels = nn.ModuleDict(levels)
        self.class_token, self.fold, self.global_times = class_token, fold, global_times
        self.rotary = is_rotary(layer)

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"{self.names}, {self.class_token}, {self.global_times}"

    def forward(self, x: Tensor, *state: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        tables, state = (state, ()) if self.rotary else ((), state)
        query, key, value = self.layer.project(x, *tables)
        bias = size_bias(self.layer, state)
        attention = iter(self.signals(query, key, self.layer.heads, bias, state))
        outputs = self.layer.finish(x, query, key, value, *state)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        signals = []
        for name in self.names:
            if name == HIDDEN:
                signals.append(self._own_tokens(_patches(outputs)))
            else:
                level = name in self.levels
                signals.append(self.levels[name](_patches(outputs)) if level else next(attention))
        return outputs, tuple(signals)

    def signals(
        self,
        query: Tensor,
        key: Tensor,
        heads: int,
        bias: Tensor | None,
        state: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Each signal of a layer's attention.

        Args:
            query: Its queries, [1, n, H*D].
            key: Its keys, the same.
            heads: H.
            bias: What its scores get where merged tokens weigh more, `size_bias`.
            state: If tokens merged, size and origin.
        """
        signals = []
        for name in self.names:
            if name == HIDDEN or name in self.levels:  # no matter of queries and keys
                continue
            count = 1 if name in FLAT else heads
            signal = _keys(key, count)
            if name == GLOBAL:
                weights = _attention(attention_scores(query, key, count), bias).mean(1)
                signal = global_rows(weights, self.global_times, self.class_token).unsqueeze(-1)
            elif name not in KEYS:
                rows = query[:, :1] if self.class_token else query
                scores = attention_scores(rows, key, count)
                if name != LOGITS:
                    scores = _attention(scores, bias)
                signal = scores.mean((1, 2)).unsqueeze(-1)
            if state:
                size, origin = state
                if bias is not None and name not in (*KEYS, LOGITS):
                    signal = signal / size  # it has the attention of all that it stands for
                signal = signal.index_select(1, origin[0])
            signals.append(self._own_tokens(signal))
        return tuple(signals)

    def _own_tokens(self, signal: Tensor) -> Tensor:
        """Drop the class token and fold patches: [1, 1 + N, E] -> [1, N, E], [1, N] if E is 1."""
        folded: Tensor = self.fold(signal[:, 1:] if self.class_token else signal)
        return folded.squeeze(-1) if folded.shape[-1] == 1 else folded


class ObservedPixels(Observed):
    """The embedding that also gives the entropy of its patches: pixel_values -> hidden, entropy.

    Raises:
        PlanError: If the patches of a view are no grid of square patches.
    """

    def __init__(
        self, embedding: nn.Module, fold: nn.Module, patches: int, image: ImageSpec
    ) -> None:
        super().__init__(embedding, (ENTROPY,), False, fold)
        self.side = math.isqrt(image.height * image.width // patches)
        if (image.height // self.side) * (image.width // self.side) != patches:
            raise PlanError(
                f"signal '{ENTROPY}' needs a view of square patches alone, this one has {patches}"
                f" tokens from {image.width}x{image.height} pixels"
            )
        self.mean, self.std = image.mean, image.std

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"{self.side}, {self.mean}, {self.std}"

    def forward(
        self, pixel_values: Tensor, *state: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        mean, std = (torch.tensor(three)[:, None, None] for three in (self.mean, self.std))
        values = ((pixel_values[0] * std + mean) * 255.0).round().clamp(0.0, 255.0)
        height, width = values.shape[1] // self.side, values.shape[2] // self.side
        cut = values[:, : height * self.side, : width * self.side]
        cut = cut.reshape(3, height, self.side, width, self.side).permute(1, 3, 0, 2, 4)
        shares = entropy(cut.reshape(height * width, 3, -1)).softmax(0)
        return (self.layer(pixel_values),), (self._own_tokens(shares[None, :, None]),)


class Beyond(Observed):
    """The connector, and signals of the last of the layers that follow the one before it."""

    def __init__(
        self,
        connector: nn.Module,
        after: Sequence[Any],
        names: Sequence[str],
        class_token: bool,
        fold: nn.Module,
    ) -> None:
        super().__init__(connector, names, class_token, fold)
        self.between = nn.ModuleList(after[:-1])
        last = after[-1]
        merging = isinstance(last, MergingLayer)
        self.last = QueryKey(last.layer if merging else last)
        self.method = last.method if merging else None  # for `size_bias`, as a layer has it

    def forward(self, *state: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        features, beyond = self.layer(*state), state
        for layer in self.between:
            outputs = layer(*beyond)
            beyond = outputs if isinstance(outputs, tuple) else (outputs,)
        query, key = self.last(beyond[0])
        bias = size_bias(self, beyond[1:])
        return (features,), self.signals(query, key, self.last.heads, bias, beyond[1:])


def observe(
    parts: ModelParts,
    names: Sequence[str],
    global_times: float = 0.0,
    image: ImageSpec | None = None,
) -> ModelParts:
    """The parts with the encoder's modules that give `names` observed.

    Args:
        parts: The model.
        names: Signals.
        global_times: Of the method, for `global_attention`.
        image: Preprocessing, for `patch_entropy`.

    Raises:
        PlanError: If the encoder has no layer that gives one of them.
    """
    encoder, layers = parts.encoder, list[Any](parts.encoder.layers)
    common = encoder.spec.class_token, encoder.fold
    beyond = [name for name in names if encoder.after and name in OF_LAST_LAYER]
    inside = [name for name in names if name not in (*beyond, ENTROPY)]
    if inside and not layers:
        missing = inside[0]
        raise PlanError(f"signal '{missing}' comes from a layer of the encoder, this one has none")
    levels = dict(zip(LEVELS, encoder.levels, strict=False))
    places = {EARLY: 0} | {name: index for name, (index, _) in levels.items()}
    by_layer = dict[int, list[str]]()
    for name in inside:
        by_layer.setdefault(places.get(name, len(layers) - 1), []).append(name)
    for index, here in by_layer.items():
        taken = {name: levels[name][1] for name in here if name in levels}
        layers[index] = Observed(layers[index], here, *common, global_times, taken)
    connector, embedding = encoder.connector, encoder.embedding
    if beyond:
        connector = Beyond(connector, encoder.after, beyond, *common)
    if ENTROPY in names:
        assert image is not None
        embedding = ObservedPixels(embedding, encoder.fold, encoder.spec.patches, image)
    observed = replace(encoder, embedding=embedding, layers=tuple(layers), connector=connector)
    return replace(parts, encoder=observed)


def reads_last_layer(names: Sequence[str]) -> bool:
    """Whether one of the signals is that of the encoder's last layer."""
    return any(name in OF_LAST_LAYER for name in names)


def is_rotary(module: nn.Module) -> bool:
    """Whether a module of the encoder takes the rotary tables of the grid beside hidden."""
    return bool(getattr(module, "rotary", False))


def encode(
    modules: Sequence[nn.Module], *state: Tensor, grid: nn.Module | None = None
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Run modules of the encoder: what goes on to the next, and the signals in their order.

    `grid` gives the rotary tables of the layers that take them.
    """
    tables = () if grid is None else grid()
    signals: list[Tensor] = []
    for module in modules:
        outputs = module(*state, *tables) if is_rotary(module) else module(*state)
        if isinstance(module, Observed):
            outputs, observed = outputs
            signals += observed
        state = outputs if isinstance(outputs, tuple) else (outputs,)
    return state, signals


def method_inputs(
    parts: ModelParts, names: Sequence[str], pixel_values: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Features [1, P*N, C] and signals of all views f32 [P, 3, h_px, w_px], for the method."""
    modules = parts.encoder.modules
    order = [name for module in modules if isinstance(module, Observed) for name in module.names]
    features, by_name = [], dict[str, list[Tensor]]({name: [] for name in names})
    for index in range(len(pixel_values)):
        view = pixel_values[index : index + 1]
        (output,), signals = encode(modules, view, grid=parts.encoder.grid)
        features.append(output)
        for name, signal in zip(order, signals, strict=True):
            by_name[name].append(signal)
    joined = {name: torch.cat(views, 1) for name, views in by_name.items()}
    packed = {name: pack(parts.pack, signal) for name, signal in joined.items()}
    packed_features: Tensor = parts.pack(torch.cat(features, 1))
    return packed_features, packed


def pack(module: nn.Module, signal: Tensor) -> Tensor:
    """A signal of all views, [1, P*N] or [1, P*N, E], in the order of the method's features."""
    wide = signal if signal.dim() == 3 else signal.unsqueeze(-1)
    packed: Tensor = module(wide)
    return packed.reshape(1, packed.shape[1], *signal.shape[2:])


def _patches(outputs: tuple[Tensor, ...]) -> Tensor:
    """What a layer gives, where tokens merged with that of a token for each patch of it."""
    rows, *merged = outputs
    return rows.index_select(1, merged[1][0]) if merged else rows


def _keys(key: Tensor, heads: int) -> Tensor:
    return key.reshape(1, key.shape[1], heads, -1).mean(2)  # [1, N, D]


def _attention(scores: Tensor, bias: Tensor | None) -> Tensor:
    return (scores if bias is None else scores + bias).softmax(-1)


def global_rows(weights: Tensor, times: float, class_token: bool = False) -> Tensor:
    """Mean of the rows of the global tokens.

    Args:
        weights: Attention, mean of heads, f32 [1, N, N].
        times: A token is global if it receives more than so many times the mean, or most of all.
        class_token: Token 0 is no token of the image: it is never global.

    Returns:
        f32 [1, N].
    """
    received = weights.mean(1)  # [1, N]
    if class_token:
        received = torch.where(torch.arange(received.shape[1]) == 0, 0.0, received)
    above = received > received.mean(1, True) * times
    is_global = (above | (received >= received.amax(1, True))).to(weights.dtype)
    return (is_global.unsqueeze(1) @ weights).squeeze(1) / is_global.sum(1, keepdim=True)
