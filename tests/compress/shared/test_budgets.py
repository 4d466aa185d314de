"""Budgets over grids, and numbers that are refused."""

from __future__ import annotations

import pytest

from edgevlm.compress.shared.budgets import check_fewer_patches, grid_budgets, kept_tokens
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


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


def test_kept_tokens() -> None:
    """None keeps all; a number outside 1 to N is refused."""
    assert kept_tokens("m", None, 9) == 9
    assert kept_tokens("m", 9, 9) == 9
    with pytest.raises(PlanError, match=r"^m: got tokens=10, expected 1 to 9 "):
        kept_tokens("m", 10, 9)


def test_check_fewer_patches() -> None:
    """As many patches as before are no merging."""
    check_fewer_patches("m", 8, 9)
    with pytest.raises(PlanError, match=r"^m: got patches=9, expected less than 9 "):
        check_fewer_patches("m", 9, 9)
