"""Budgets of tokens as plan numbers: how many are kept, and how many of each grid."""

from __future__ import annotations

import math

from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def kept_tokens(method: str, tokens: int | None, total: int) -> int:
    """K: how many of `total` tokens are kept; None keeps all.

    Raises:
        PlanError: If `tokens` is not between 1 and `total`.
    """
    if tokens is None:
        return total
    if not 1 <= tokens <= total:
        raise PlanError(
            f"{method}: got tokens={tokens}, expected 1 to {total} (the visual tokens there are);"
            f" choose a number in that range"
        )
    return tokens


def grid_budgets(method: str, shape: VisualShape, kept: int) -> tuple[int, ...]:
    """Split a budget of `kept` tokens among the grids in proportion to their tokens.

    Largest remainder: each grid gets its proportion rounded down, then the grids that are furthest
    below it get one more; of equals the first. No grid gets less than one token.

    Raises:
        PlanError: If there are fewer tokens than grids.
    """
    if kept < len(shape.grids):
        raise PlanError(
            f"{method}: got tokens={kept} for {len(shape.grids)} grids (tiles or frames), expected"
            " at least one each; keep more tokens or use fewer tiles or frames"
        )
    sizes, total = [h * w for h, w in shape.grids], shape.tokens
    budgets = [max(1, kept * size // total) for size in sizes]
    while sum(budgets) != kept:
        # Integers, in units of 1 / total: how far each grid is below its proportion.
        below = [kept * size - budget * total for size, budget in zip(sizes, budgets, strict=True)]
        if sum(budgets) < kept:
            budgets[below.index(max(below))] += 1
        else:
            above = [-b if n > 1 else -math.inf for b, n in zip(below, budgets, strict=True)]
            budgets[above.index(max(above))] -= 1
    return tuple(budgets)


def check_fewer_patches(method: str, wanted: int, patches: int) -> None:
    """Refuse to merge the patches of a view into as many or more.

    Raises:
        PlanError: If `wanted` is not below `patches`.
    """
    if wanted >= patches:
        raise PlanError(
            f"{method}: got patches={wanted}, expected less than {patches} (those of a view)"
        )
