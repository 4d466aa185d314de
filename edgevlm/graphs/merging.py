"""Site `vision`: tokens merge between the layers of the encoder, and are put back at its end.

A method of this site (`compress/vision/`) plans how many tokens are left after each layer, and
merges them there, between attention and MLP or, if its `between` is false, after both. From the
first merging on, three tensors go from layer to layer:

    hidden  [1, n, D]  the tokens that are left
    size    [1, n, 1]  patches that each stands for; if the method is `proportional`, attention
                       adds its logarithm to the scores, so that a token weighs as much as its
                       patches would (proportional attention), else as one
    origin  [1, N]     i32, the token that each of the first N tokens is part of now

Before the connector each of the N positions gets the token that it is part of, so the connector,
its folds and packing, and methods of site `tokens` see a full grid. The encoder is faster; methods
of site `tokens` reduce the number of visual tokens.

Where tokens of a clip leave instead (`leaves`), the hidden state alone goes on, with fewer tokens,
and the head sees those that stayed.

Sources: ToMe (arXiv 2210.09461), section 3; the putting back is DyMU's virtual unmerging
(arXiv 2504.17040), done once before the language model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.clips.joining import WindowedLayer, join
from edgevlm.graphs.clips.merging import FramesMergingLayer, merge_frames
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.ops import attention_scores
from edgevlm.graphs.parts import EncoderParts


class MergingLayer(nn.Module):
    """An encoder layer after which, or between whose two halves, tokens merge.

    x [1, n, D], and size and origin unless it is the first -> the three, with fewer tokens.
    """

    def __init__(
        self, layer: EncoderLayer, method: Any, counts: tuple[int, int], class_token: bool
    ) -> None:
        super().__init__()
        self.layer, self.method = layer, method
        self.counts, self.class_token = counts, class_token
        self.heads, self.head_size = layer.heads, layer.head_size

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"{self.counts}, {type(self.method).__module__}, {vars(self.method)}"

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return self.finish(x, *self.project(x), *state)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `EncoderLayer.project`."""
        return self.layer.project(x)

    def finish(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """As `EncoderLayer.finish`, with the merging."""
        x = self.layer.attend(x, query, key, value, size_bias(self, state))
        if self.method.between:
            metric = key.reshape(1, x.shape[1], self.heads, -1).mean(2)
            x, size, origin = self._merge(x, metric, state)
            return self.layer.feed(x), size, origin
        return self._merge(self.layer.feed(x), x, state)

    def _merge(self, x: Tensor, metric: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        before, after = self.counts
        size, origin = state or (torch.ones(1, before, 1), torch.arange(before).unsqueeze(0))
        if before == after:
            return x, size, origin.to(torch.int32)
        removed = before - after
        rows, sizes, row_of = self.method(x[0], metric[0], size[0], removed, self.class_token)
        origin = row_of.index_select(0, origin[0]).unsqueeze(0).to(torch.int32)
        return rows.unsqueeze(0), sizes.unsqueeze(0), origin


class LeavingLayer(nn.Module):
    """An encoder layer between whose two halves tokens of a clip leave: [1, n, D] -> [1, k, D].

    The tokens of the key frame are in front. The first such layer takes all tokens in the order of
    their groups of frames, and moves the middle one of these there.

    Args:
        layer: The layer.
        method: A method that `leaves`.
        counts: n and k.
        groups: Groups of frames of n tokens, for the first; 0 for the others.
        key: Tokens of the key frame.
    """

    def __init__(
        self, layer: EncoderLayer, method: Any, counts: tuple[int, int], groups: int, key: int
    ) -> None:
        super().__init__()
        self.layer, self.method = layer, method
        self.counts, self.groups, self.key = counts, groups, key

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        named = type(self.method).__module__
        return f"{self.counts}, {self.groups}, {self.key}, {named}, {vars(self.method)}"

    def forward(self, x: Tensor) -> Tensor:
        if self.groups:
            start = self.groups // 2 * self.key
            stop = start + self.key
            x = torch.cat((x[:, start:stop], x[:, :start], x[:, stop:]), dim=1)
        query, key, value = self.layer.project(x)
        x = self.layer.attend(x, query, key, value)
        kept = self.method.choose(self._received(query, key), self.key, self.counts[1])
        return self.layer.feed(x.index_select(1, kept))

    def _received(self, query: Tensor, key: Tensor) -> Tensor:
        """What each token receives of the weighed attention of all, in the mean: f32 [n].

        A head at a time, so that memory is that of one.
        """
        count, heads = query.shape[1], self.layer.heads
        weights, received = self.method.weigh(count, self.key).unsqueeze(0), None
        for rows, columns in zip(query.chunk(heads, -1), key.chunk(heads, -1), strict=True):
            head = weights @ attention_scores(rows, columns, 1)[0, 0].softmax(-1)
            received = head if received is None else received + head
        assert received is not None
        return received[0] / (count * heads)


class PutBack(nn.Module):
    """The connector, after each of the N positions has got its token back."""

    def __init__(self, connector: nn.Module) -> None:
        super().__init__()
        self.connector = connector

    def forward(self, x: Tensor, size: Tensor, origin: Tensor) -> Tensor:
        features: Tensor = self.connector(x.index_select(1, origin[0]))
        return features


def size_bias(layer: Any, state: tuple[Tensor, ...]) -> Tensor | None:
    """What proportional attention adds to the scores of a layer: f32 [1, 1, 1, n], or nothing.

    Args:
        layer: An encoder layer; a merging one if there is a state.
        state: Size and origin, or nothing before the first merging.
    """
    if not state or not layer.method.proportional:
        return None
    return state[0].log().reshape(1, 1, 1, -1)


def merge(encoder: EncoderParts, method: Any, counts: tuple[int, ...]) -> EncoderParts:
    """The encoder with layers that merge.

    Args:
        encoder: The encoder.
        method: A method of site `vision`.
        counts: Tokens before the first layer and after each; empty for no method.
    """
    if counts[-1:] == counts[:1]:
        return encoder
    if method.leaves:
        return _leaving(encoder, method, counts)
    if method.joins and method.merges:
        return merge_frames(encoder, method, counts[0] // encoder.spec.tokens)
    if method.joins:
        return join(encoder, method, counts[0] // encoder.spec.tokens)
    start = next(i for i in range(len(encoder.layers)) if counts[i + 1] < counts[i])
    total = len(encoder.layers)
    layers: list[Any] = [*encoder.layers, *encoder.after]
    all_counts = (*counts, *counts[-1:] * len(encoder.after))  # behind the last none merge
    for index in range(start, len(layers)):
        pair = all_counts[index], all_counts[index + 1]
        layers[index] = MergingLayer(layers[index], method, pair, encoder.spec.class_token)
    return replace(
        encoder,
        layers=tuple(layers[:total]),
        connector=PutBack(encoder.connector),
        after=tuple(layers[total:]),
    )


def _leaving(encoder: EncoderParts, method: Any, counts: tuple[int, ...]) -> EncoderParts:
    """The encoder with layers that tokens leave."""
    groups, layers = encoder.spec.groups, list[Any](encoder.layers)
    key, first = encoder.spec.patches // groups, groups
    for index, layer in enumerate(encoder.layers):
        pair = counts[index], counts[index + 1]
        if pair[1] < pair[0]:
            layers[index], first = LeavingLayer(layer, method, pair, first, key), 0  # type: ignore[arg-type]
    return replace(encoder, layers=tuple(layers))


def leaves(module: Any) -> bool:
    """Whether tokens leave in a module of the encoder, or frames may join."""
    return isinstance(module, LeavingLayer | WindowedLayer)


def merges(module: Any) -> bool:
    """Whether tokens merge in a module of the encoder."""
    layer = _merging_layer(module)
    return layer is not None and layer.counts[1] < layer.counts[0]


def layer_tokens(encoder: EncoderParts) -> tuple[int, ...]:
    """Tokens before the first layer and after each, a class token included."""
    spec = encoder.spec
    counts = [spec.tokens]
    for index, module in enumerate(encoder.layers):
        layer, left = _merging_layer(module), spec.tokens
        if spec.folded and index >= spec.folded[0]:
            left = spec.folded[1]
        if any(map(leaves, encoder.layers)):
            fewer: Any = module
            left = fewer.counts[1] if leaves(module) else counts[-1]
        counts.append(layer.counts[1] if layer else left)
    return tuple(counts)


def _merging_layer(module: Any) -> MergingLayer | FramesMergingLayer | None:
    """The merging layer that a module of the encoder is, or that it observes."""
    kinds = MergingLayer | FramesMergingLayer
    layer = module if isinstance(module, kinds) else getattr(module, "layer", None)
    return layer if isinstance(layer, kinds) else None
