"""Grids of visual tokens, and features that do not belong to them."""

from __future__ import annotations

import pytest
import torch

from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape, check_shape, clip_frames, square_shape


def test_shape_counts_all_grids() -> None:
    """N is the sum over tiles."""
    assert VisualShape(((2, 3), (4, 5)), 7).tokens == 26


def test_square_shape() -> None:
    """A lone square grid is understood, anything else needs a shape."""
    assert square_shape("m", torch.zeros(1, 9, 2)) == VisualShape(((3, 3),), 2)
    with pytest.raises(PlanError, match=r"^m: got 8 tokens and no grid, expected a square number;"):
        square_shape("m", torch.zeros(1, 8, 2))


def test_check_shape() -> None:
    """Features of another grid are refused."""
    message = r"^m: got 8 tokens, expected 9 from the grids \[\(3, 3\)\]; pass"
    with pytest.raises(PlanError, match=message):
        check_shape("m", torch.zeros(1, 8, 2), VisualShape(((3, 3),), 2))


def test_frames_of_a_clip() -> None:
    """A clip has as many grids as frames; a picture and its tiles have none."""
    assert clip_frames("m", VisualShape(((2, 3),) * 4, 7, frames=4)) == (4, 6)
    message = r"^m: works over the frames of a clip, got a still picture .*; export with more --fra"
    for still in (None, VisualShape(((2, 3),) * 3, 7, (1, 2), "first")):
        with pytest.raises(PlanError, match=message):
            clip_frames("m", still)
    with pytest.raises(PlanError, match=r"^m: got 2 frames of the grids \[\(2, 3\), \(2, 2\)\], "):
        clip_frames("m", VisualShape(((2, 3), (2, 2)), 7, frames=2))
