"""Site `vision` over frames: tokens of neighbouring frames are joined and merge, layer by layer.

    windows [W, n, D], a frame each -> a layer may join some neighbours, class tokens in front ->
    tokens merge by the layer's input -> attention inside each window -> tokens merge by keys -> MLP

Beside the hidden state [1, W * n, D] go size and origin, as where patches of a view merge
(`graphs.merging`); origin is of the tokens of all frames. The clip's embedding is the mean of those
of all class tokens, at length 1.

Source: TempMe, LunarShen/TempMe@e624930, of which `compress/vision/tempme.py` has the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.clips.joining import EachFrame
from edgevlm.graphs.ops import attention
from edgevlm.graphs.parts import EncoderParts
from edgevlm.graphs.selection import unit_rows

# Tokens of all windows f32 [W, n, D], and the patches that each stands for f32 [W, n, 1].
Windows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Stage:
    """Numbers of the windows in one layer.

    Attributes:
        joined: Neighbouring windows that become one before it; 1 joins none.
        windows: W, of what is joined.
        classes: Class tokens of each.
        before: Tokens of each as they are joined, class tokens included.
        inside: Those that see each other in the layer.
        after: Those behind it.
    """

    joined: int
    windows: int
    classes: int
    before: int
    inside: int
    after: int


class FramesMergingLayer(nn.Module):
    """A layer before and in which tokens of windows merge: x, size, origin -> the three.

    The first such layer takes x alone.

    Args:
        layer: A layer of CLIP's kind.
        method: The method, which merges the tokens of a window.
        stage: Its numbers.
    """

    def __init__(self, layer: Any, method: Any, stage: Stage) -> None:
        super().__init__()
        self.layer, self.method, self.stage = layer, method, stage
        self.heads, self.head_size = layer.heads, layer.head_size

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"{self.stage}, {type(self.method).__module__}, {vars(self.method)}"

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens of all windows before and after."""
        stage = self.stage
        return stage.windows * stage.before, stage.windows * stage.after

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        stage, total = self.stage, x.shape[1]
        size, origin = state or (torch.ones(1, total, 1), torch.arange(total).unsqueeze(0))
        order = torch.tensor(joined_order(stage))
        row = torch.tensor(inverse(joined_order(stage)))  # where each token is behind the joining
        x, sizes = (
            part.index_select(1, order).reshape(stage.windows, stage.before, -1)
            for part in (x, size)
        )
        (x, sizes), row = self._merge((x, sizes), x, row, stage.before - stage.inside)
        query, key, value = self.layer.project(x.reshape(1, -1, x.shape[-1]))
        each = (part.reshape(*x.shape[:2], -1) for part in (query, key, value))
        inside = self.layer.layer.self_attn
        mixed = [
            attention(*(part.unsqueeze(0) for part in one), self.heads, bias.reshape(1, 1, 1, -1))
            for *one, bias in zip(*each, sizes.log(), strict=True)
        ]
        x = x + inside.out_proj(torch.cat(mixed, 1)).reshape(x.shape)
        metric = key.reshape(*x.shape[:2], self.heads, -1).mean(2)
        (x, sizes), row = self._merge((x, sizes), metric, row, stage.inside - stage.after)
        found = row.index_select(0, origin[0].to(torch.int64)).unsqueeze(0).to(torch.int32)
        return self.layer.feed(x.reshape(1, -1, x.shape[-1])), sizes.reshape(1, -1, 1), found

    def _merge(
        self, windows: Windows, metric: Tensor, row: Tensor, removed: int
    ) -> tuple[Windows, Tensor]:
        """Merge in each window, and follow the row of each token of the layer's input, i64."""
        if not removed:
            return windows, row
        x, size = windows
        left, found = x.shape[1] - removed, list[Any]()
        for index, one in enumerate(zip(x, metric, size, strict=True)):
            rows, sizes, row_of = self.method(*one, removed, self.stage.classes)
            found.append((rows, sizes, row_of + index * left))
        rows, sizes, rows_of = zip(*found, strict=True)
        return (torch.stack(rows), torch.stack(sizes)), torch.cat(rows_of).index_select(0, row)


class MeanOfClasses(nn.Module):
    """The head for each class token, and the mean of embeddings at length 1.

    x [1, W * n, D], size, origin -> [1, E].
    """

    def __init__(self, head: nn.Module, stage: Stage) -> None:
        super().__init__()
        self.head, self.stage = head, stage

    def forward(self, x: Tensor, size: Tensor, origin: Tensor) -> Tensor:
        windows = x.reshape(self.stage.windows, self.stage.after, -1)
        classes = windows[:, : self.stage.classes].reshape(-1, 1, x.shape[-1])
        each = torch.cat([self.head(token.unsqueeze(0)) for token in classes])  # [F, E]
        return unit_rows(each).mean(0, keepdim=True)


def merge_frames(encoder: EncoderParts, method: Any, frames: int) -> EncoderParts:
    """The encoder of a clip whose windows are joined and merge.

    Args:
        encoder: The encoder of one frame, whose class token is the embedding.
        method: A method that `joins` frames and `merges` their tokens.
        frames: Frames of a clip.
    """
    spec = encoder.spec
    stages = method.stages(frames, spec.patches, spec.layers)
    layers = list[Any](encoder.layers)
    for index, (layer, stage) in enumerate(zip(encoder.layers, stages, strict=True)):
        layers[index] = FramesMergingLayer(layer, method, stage)
    return replace(
        encoder,
        spec=replace(spec, patches=frames * spec.tokens, class_token=False),
        embedding=EachFrame(encoder.embedding),
        layers=tuple(layers),
        connector=MeanOfClasses(encoder.connector, stages[-1]),
    )


def joined_order(stage: Stage) -> list[int]:
    """Rows of the windows before, in the order of those that they become: class tokens in front."""
    own, classes = stage.before // stage.joined, stage.classes // stage.joined
    order = list[int]()
    for first in range(0, stage.windows * stage.before, stage.before):
        starts = range(first, first + stage.before, own)
        order += [start + token for start in starts for token in range(classes)]
        order += [start + token for start in starts for token in range(classes, own)]
    return order


def inverse(order: list[int]) -> list[int]:
    """Where each row goes, by where each comes from."""
    places = [0] * len(order)
    for place, row in enumerate(order):
        places[row] = place
    return places
