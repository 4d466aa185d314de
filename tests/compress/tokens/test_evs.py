"""Efficient Video Sampling by hand, and against a stable sort of 1 - cosine."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.tokens.evs import Method
from edgevlm.graphs.visual_shape import VisualShape

CLIP = VisualShape(((4, 4),) * 4, 16, frames=4)


def test_a_still_frame_keeps_none() -> None:
    """Three frames of two tokens: the second is the first, in the third one token turned."""
    frame = [[1.0, 0.0], [0.0, 1.0]]
    clip = torch.tensor([[*frame, *frame, [1.0, 0.0], [1.0, 1.0]]])
    shape = VisualShape(((1, 2),) * 3, 2, frames=3)
    tokens, positions = Method(tokens=3)(clip, shape=shape)
    assert positions.tolist() == [[0, 1, 5]]
    assert tokens.tolist() == [[*frame, [1.0, 1.0]]]
    assert Method(tokens=4)(clip, shape=shape)[1].tolist() == [[0, 1, 2, 5]]


def test_the_largest_of_the_clip(features: Tensor) -> None:
    """As the original sorts them: the first frame has 255, a cosine is at least -1."""
    x = features.reshape(4, 16, 16)
    unlike = 1 - torch.nn.functional.cosine_similarity(x[1:], x[:-1], dim=-1)
    order = torch.cat([torch.full((16,), 255.0), unlike.flatten()]).argsort(
        descending=True, stable=True
    )
    for kept in (16, 17, 30, 63):
        _, positions = Method(tokens=kept)(features, shape=CLIP)
        assert positions[0].tolist() == sorted(order[:kept].tolist())
