"""Area averages: by hand, against avg_pool2d, and the laws of the weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgevlm.compress.tokens.average_pool import Method, band_count, cells
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """Grid 2x3 to two cells of 2x1.5: the middle column counts half in each."""
    features = torch.tensor([[[0.0], [3.0], [6.0], [9.0], [12.0], [15.0]]])
    kept, positions = Method(tokens=2)(features, shape=VisualShape(((2, 3),), 1))
    # (0 + 3/2 + 9 + 12/2) / 3 and (3/2 + 6 + 12/2 + 15) / 3
    assert kept.flatten().tolist() == pytest.approx([5.5, 9.5])
    assert positions.tolist() == [[3, 5]]


@pytest.mark.parametrize(
    ("h", "w", "a", "b"), [(8, 8, 4, 4), (8, 8, 2, 4), (8, 8, 1, 1), (6, 12, 3, 6), (27, 27, 9, 9)]
)
def test_equals_avg_pool2d(h: int, w: int, a: int, b: int) -> None:
    """Where cells divide the grid it is the pooling that everyone knows."""
    features = torch.randn(1, h * w, 5, generator=torch.Generator().manual_seed(0))
    kept, _ = Method(tokens=a * b)(features, shape=VisualShape(((h, w),), 5))
    image = features.transpose(1, 2).reshape(1, 5, h, w)
    expected = functional.avg_pool2d(image, (h // a, w // b)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-6)


def test_grids_do_not_mix() -> None:
    """Two tiles of constant value stay constant, and each gets its share."""
    shape = VisualShape(((4, 4), (2, 4)), 1)
    features = torch.cat([torch.full((1, 16, 1), 2.0), torch.full((1, 8, 1), 5.0)], 1)
    kept, positions = Method(tokens=6)(features, shape=shape)
    assert kept.flatten().tolist() == pytest.approx([2.0] * 4 + [5.0] * 2)
    assert positions.tolist() == [[5, 7, 13, 15, 21, 23]]


def test_weights_of_every_budget() -> None:
    """Rows sum to 1, no token is forgotten, centres ascend and are in their cell."""
    for h, w in itertools.product(range(1, 8), range(1, 8)):
        for kept in range(1, h * w + 1):
            weights, centres = cells(((h, w),), (kept,))
            assert weights.shape == (kept, h * w)
            np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
            assert (weights.sum(0) > 0).all()
            assert all(a < b for a, b in itertools.pairwise(centres))
            assert all(weights[row, centre] > 0 for row, centre in enumerate(centres))


def test_bands_are_near_square() -> None:
    """About sqrt(k h / w) bands; a prime budget does not become strips."""
    assert band_count(8, 8, 16) == 4
    assert band_count(14, 14, 7) == 3
    assert band_count(8, 8, 8) == 2
    assert band_count(4, 16, 16) == 2
    assert band_count(27, 27, 27) == 5


def test_errors() -> None:
    """The grid matters here, so it has to be known and to fit."""
    with pytest.raises(PlanError, match=r"^average_pool: got 8 tokens and no grid"):
        Method(tokens=4)(torch.zeros(1, 8, 1))
    with pytest.raises(PlanError, match=r"^average_pool: got 8 tokens, expected 9 from the grids"):
        Method(tokens=4)(torch.zeros(1, 8, 1), shape=VisualShape(((3, 3),), 1))
    with pytest.raises(PlanError, match=r"^average_pool: got tokens=2 for 3 grids"):
        Method(tokens=2).plan(VisualShape(((2, 2),) * 3, 1))


def test_groups_of_frames_equal_avg_pool3d() -> None:
    """Two frames and 2 x 3 tokens a cell, at the position of the later frame."""
    shape, generator = VisualShape(((4, 6),) * 6, 5, frames=6), torch.Generator().manual_seed(0)
    features = torch.randn(1, 144, 5, generator=generator)
    kept, positions = Method(tokens=12, frames=2)(features, shape=shape)
    clip = features.transpose(1, 2).reshape(1, 5, 6, 4, 6)
    expected = functional.avg_pool3d(clip, (2, 2, 3)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-6)
    assert positions[0, :5].tolist() == [24 + 7, 24 + 10, 24 + 19, 24 + 22, 72 + 7]


def test_the_last_group_has_the_frames_that_are_left() -> None:
    """Of three frames the third is alone; more tokens than the groups have are refused."""
    shape = VisualShape(((1, 2),) * 3, 1, frames=3)
    features = torch.tensor([[[1.0], [2.0], [3.0], [6.0], [5.0], [7.0]]])
    kept, positions = Method(tokens=4, frames=2)(features, shape=shape)
    assert kept.flatten().tolist() == [2.0, 4.0, 5.0, 7.0]
    assert positions.tolist() == [[2, 3, 4, 5]]
    message = r"^average_pool: got tokens=5, expected 2 to 4 of the 2 groups of 2 frames; keep"
    with pytest.raises(PlanError, match=message):
        Method(tokens=5, frames=2).plan(shape)
    with pytest.raises(PlanError, match=r"^average_pool: works over the frames of a clip, got"):
        Method(tokens=5, frames=2).plan(VisualShape(((4, 4),), 1))
    with pytest.raises(ValueError, match=r"^frames must be at least 1, got 0"):
        Method(frames=0)
