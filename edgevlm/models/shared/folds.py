"""Patches of a view to fewer tokens: S x S neighbours stand side by side (pixel shuffle).

Tokens come row by row; within one, the patches of its first row stand first.
"""

from __future__ import annotations

import math

from torch import Tensor, nn


def folded(x: Tensor, scale: int) -> Tensor:
    """Patches of a square view, S x S of them in a row: [1, N, D] -> [1, N / S^2, S^2 * D]."""
    n = math.isqrt(x.shape[1]) // scale
    grid = x.reshape(n, scale, n, scale, -1).transpose(1, 2)
    return grid.reshape(1, n * n, -1)


class MeanFold(nn.Module):
    """Values of patches to values of tokens, as a fold groups them: their mean.

    [1, patches, E] -> [1, patches / scale^2, E].
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        n = side // self.scale
        patches = x.reshape(n, self.scale, n, self.scale, -1)
        return patches.mean((1, 3)).reshape(1, n * n, -1)


class FoldedConnector(nn.Module):
    """Norm, fold of the patches without the class token, projector.

    [1, 1 + patches, D] -> [1, patches / scale^2, C].
    """

    def __init__(self, norm: nn.Module, projector: nn.Module, scale: int) -> None:
        super().__init__()
        self.norm, self.projector, self.scale = norm, projector, scale

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"scale={self.scale}"

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.projector(folded(self.norm(x)[:, 1:], self.scale))
        return features
