"""What changes from frame to frame: each token against the one at its place in the frame before.

The first frame of a clip has none before it and stays whole. Copies (a still camera) tie: their
cosines differ by rounding alone, and the lowest index wins in each engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgevlm.errors import PlanError
from edgevlm.graphs.selection import ROUNDING, largest, unit_rows
from edgevlm.graphs.visual_shape import VisualShape, clip_frames


def similarity(previous: Tensor, frame: Tensor) -> Tensor:
    """Cosine of each token with the one at its place in the frame before: f32 [..., N].

    Args:
        previous: f32 [..., N, C].
        frame: f32 [..., N, C].
    """
    cosine = (unit_rows(previous) * unit_rows(frame)).sum(-1)
    return cosine.clamp(max=1.0 - ROUNDING)


def most_changed(similar: Tensor, budgets: Sequence[int]) -> Tensor:
    """Mark in each frame as many tokens as its budget, those of the least cosines: bool [f, N].

    Args:
        similar: Cosines with the frame before, f32 [f, N].
        budgets: Tokens of each frame, f of them; 0 is none.
    """
    mask = similar > 2.0  # none
    for count in sorted(set(budgets) - {0}):
        here = torch.tensor([[budget == count] for budget in budgets])  # [f, 1]
        mask = mask | (largest(-similar, count) & here)
    return mask


def after_first(method: str, shape: VisualShape | None, kept: int) -> tuple[int, int, int]:
    """F, N, and the tokens kept of all frames but the first, which stays whole: K - N.

    Raises:
        PlanError: Of a still picture, or if K is below the tokens of a frame.
    """
    frames, tokens = clip_frames(method, shape)
    if kept < tokens:
        raise PlanError(
            f"{method}: got tokens={kept}, expected {tokens} to {frames * tokens}: the first of the"
            f" {frames} frames stays whole; keep more tokens or use more frames"
        )
    return frames, tokens, kept - tokens
