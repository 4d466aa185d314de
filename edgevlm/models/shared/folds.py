"""Patches of a view to fewer tokens: S x S neighbours stand side by side (pixel shuffle).

Tokens come row by row; within one, the patches of its first row stand first. A grid is square where
its sides are not given.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

Grid = tuple[int, int] | None


def folded(x: Tensor, scale: int, grid: Grid = None) -> Tensor:
    """Patches of a view, S x S of them in a row: [1, N, D] -> [1, N / S^2, S^2 * D]."""
    rows, columns = _tokens(x.shape[1], scale, grid)
    cells = x.reshape(rows, scale, columns, scale, -1).transpose(1, 2)
    return cells.reshape(1, rows * columns, -1)


class MeanFold(nn.Module):
    """Values of patches to values of tokens, as a fold groups them: their mean.

    [1, patches, E] -> [1, patches / scale^2, E].
    """

    def __init__(self, scale: int, grid: Grid = None) -> None:
        super().__init__()
        self.scale, self.grid = scale, grid

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"scale={self.scale}, grid={self.grid}"

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = _tokens(x.shape[1], self.scale, self.grid)
        patches = x.reshape(rows, self.scale, columns, self.scale, -1)
        return patches.mean((1, 3)).reshape(1, rows * columns, -1)


class FoldedConnector(nn.Module):
    """Norm, fold of the patches, projector: [1, patches, D] -> [1, patches / scale^2, C].

    With `class_token` a token is before the patches, and is dropped.
    """

    def __init__(
        self,
        norm: nn.Module,
        projector: nn.Module,
        scale: int,
        grid: Grid = None,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        self.norm, self.projector, self.scale = norm, projector, scale
        self.grid, self.class_token = grid, class_token

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"scale={self.scale}, grid={self.grid}, class_token={self.class_token}"

    def forward(self, x: Tensor) -> Tensor:
        patches = self.norm(x)[:, 1:] if self.class_token else self.norm(x)
        features: Tensor = self.projector(folded(patches, self.scale, self.grid))
        return features


def _tokens(patches: int, scale: int, grid: Grid) -> tuple[int, int]:
    """Rows and columns of tokens."""
    rows, columns = grid or (math.isqrt(patches),) * 2
    return rows // scale, columns // scale
