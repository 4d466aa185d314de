"""Site `vision` over frames: an encoder of single frames sees a clip in one call, and joins frames.

    pixel_values [1, 3 * F, h_px, w_px] -> a window of tokens for each frame -> layers, in which the
    tokens of a window see each other -> a method joins windows behind a layer -> the head for each
    window that is left -> the mean of these embeddings at length 1

Between layers all windows stand one after the other, [1, W * n, D], so that blocks are cut as of
any encoder.

Source of the mean: CLIP4Clip (arXiv 2104.08860), section 3.3.1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.ops import attention
from edgevlm.graphs.parts import EncoderParts
from edgevlm.graphs.selection import unit_rows


class EachFrame(nn.Module):
    """Tokens of each frame: pixel_values f32 [1, 3 * F, h_px, w_px] -> [1, F * n, D]."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, pixel_values: Tensor) -> Tensor:
        frames = pixel_values.shape[1] // 3
        return torch.cat([self.embedding(view) for view in pixel_values.chunk(frames, 1)], dim=1)


class WindowedLayer(nn.Module):
    """A layer of windows of tokens, behind which a method may join them: [1, W * n, D].

    Args:
        layer: A layer of CLIP's kind.
        method: The method.
        before: W and n.
        after: The same behind the layer.
    """

    def __init__(
        self, layer: Any, method: Any, before: tuple[int, int], after: tuple[int, int]
    ) -> None:
        super().__init__()
        self.layer, self.method, self.before, self.after = layer, method, before, after

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        named = type(self.method).__module__
        return f"{self.before}, {self.after}, {named}, {vars(self.method)}"

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens of all windows before and after."""
        return self.before[0] * self.before[1], self.after[0] * self.after[1]

    def forward(self, x: Tensor) -> Tensor:
        # Attention alone takes windows: linear layers of int8 have one.
        inside, width = self.layer.layer.self_attn, x.shape[-1]
        projected = (part.reshape(*self.before, -1) for part in self.layer.project(x))
        mixed = attention(*projected, self.layer.heads)
        x = self.layer.feed(x + inside.out_proj(mixed.reshape(1, x.shape[1], -1)))
        if self.after == self.before:
            return x
        joined: Tensor = self.method(x.reshape(*self.before, width), *self.after)
        return joined.reshape(1, -1, width)


class MeanOfWindows(nn.Module):
    """The head for each window, and the mean of embeddings at length 1: [1, W * n, D] -> [1, E]."""

    def __init__(self, head: nn.Module, windows: int) -> None:
        super().__init__()
        self.head, self.windows = head, windows

    def forward(self, x: Tensor) -> Tensor:
        each = torch.cat([self.head(window) for window in x.chunk(self.windows, 1)])  # [W, E]
        return unit_rows(each).mean(0, keepdim=True)


def join(encoder: EncoderParts, method: Any, frames: int) -> EncoderParts:
    """The encoder of a clip, of an encoder of frames whose class token is the embedding.

    Args:
        encoder: The encoder of one frame.
        method: A method that `joins` frames.
        frames: Frames of a clip.
    """
    spec = encoder.spec
    shapes = ((frames, spec.tokens), *method.plan_frames(frames, spec.patches, spec.layers))
    layers = (
        WindowedLayer(layer, method, shapes[index], shapes[index + 1])
        for index, layer in enumerate(encoder.layers)
    )
    return replace(
        encoder,
        spec=replace(spec, patches=frames * spec.tokens, class_token=False),
        embedding=EachFrame(encoder.embedding),
        layers=tuple(layers),
        connector=MeanOfWindows(encoder.connector, shapes[-1][0]),
    )
