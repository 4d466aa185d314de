"""Budgets over grids, and order without sort."""

from __future__ import annotations

import pytest
import torch

from edgevlm.errors import PlanError
from edgevlm.graphs.selection import (
    VisualShape,
    ascending,
    check_shape,
    descending,
    grid_budgets,
    keep_rows,
    largest,
    marked,
    marked_indices,
    places,
    square_shape,
    unit_rows,
)


def test_shape_counts_all_grids() -> None:
    """N is the sum over tiles."""
    assert VisualShape(((2, 3), (4, 5)), 7).tokens == 26


@pytest.mark.parametrize(
    ("grids", "kept", "budgets"),
    [
        (((8, 8),), 10, (10,)),
        (((8, 8), (4, 4)), 20, (16, 4)),
        (((2, 5), (2, 5), (2, 5)), 10, (4, 3, 3)),  # equal remainders: the first
        (((1, 5), (1, 3), (1, 2)), 5, (3, 1, 1)),  # 2.5, 1.5, 1.0: equal remainders again
        (((10, 10), (1, 1), (1, 1)), 3, (1, 1, 1)),  # each grid has one at least
        (((10, 10), (1, 1), (1, 1)), 102, (100, 1, 1)),
        (((10, 10), (9, 9), (1, 1)), 10, (5, 4, 1)),  # shares 5.49, 4.45 and 0.05
    ],
)
def test_grid_budgets(
    grids: tuple[tuple[int, int], ...], kept: int, budgets: tuple[int, ...]
) -> None:
    """Largest remainder with at least one each."""
    assert grid_budgets("m", VisualShape(grids, 1), kept) == budgets


def test_grid_budgets_always_fit() -> None:
    """Every total is met, no grid gets none or more than it has."""
    shape = VisualShape(((7, 3), (1, 1), (5, 5), (2, 1)), 1)
    for kept in range(4, shape.tokens + 1):
        budgets = grid_budgets("m", shape, kept)
        assert sum(budgets) == kept
        assert all(1 <= b <= h * w for b, (h, w) in zip(budgets, shape.grids, strict=True))


def test_fewer_tokens_than_grids() -> None:
    """The message has both numbers."""
    message = r"^m: got tokens=1 for 2 grids \(tiles or frames\), expected at least one each; keep"
    with pytest.raises(PlanError, match=message):
        grid_budgets("m", VisualShape(((2, 2), (2, 2)), 1), 1)


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


def test_ascending() -> None:
    """Order by top-k is order."""
    assert ascending(torch.tensor([[5, 0, 9, 2]])).tolist() == [[0, 2, 5, 9]]


def test_places() -> None:
    """Equal scores keep their order."""
    assert places(torch.tensor([[0.5, 2.0, 0.5, 3.0, 0.5]])).tolist() == [[2, 1, 3, 0, 4]]
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    order = scores.argsort(1, descending=True)
    assert places(scores).gather(1, order).tolist() == [list(range(50))] * 2


def test_unit_rows() -> None:
    """Length 1; zeros stay zeros."""
    assert unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [
        pytest.approx([0.6, 0.8]),
        [0.0, 0.0],
    ]


def test_marked() -> None:
    """A mask and back, in ascending order."""
    mask = marked(torch.tensor([4, 0, 2]), 6)
    assert mask.tolist() == [True, False, True, False, True, False]
    assert marked_indices(mask, 3).tolist() == [0, 2, 4]
    assert marked_indices(~mask, 3).tolist() == [1, 3, 5]


def test_descending() -> None:
    """Largest first; equal scores keep their order."""
    assert descending(torch.tensor([0.5, 2.0, 0.5, 3.0])).tolist() == [3, 1, 0, 2]


def test_largest() -> None:
    """Exactly `count` of each row, the first of equals."""
    scores = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert largest(scores, 3).int().tolist() == [[1, 1, 0, 1, 0], [1, 1, 1, 0, 0]]
    scores = torch.randint(5, (20, 30), generator=torch.Generator().manual_seed(0)).float()
    for count in (1, 7, 30):
        assert torch.equal(largest(scores, count), places(scores) < count)


def test_keep_rows() -> None:
    """The rows, and their places as i32 with a batch of one."""
    kept, positions = keep_rows(torch.arange(8.0).reshape(1, 4, 2), torch.tensor([1, 3]))
    assert kept.tolist() == [[[2.0, 3.0], [6.0, 7.0]]]
    assert positions.tolist() == [[1, 3]]
    assert positions.dtype == torch.int32
