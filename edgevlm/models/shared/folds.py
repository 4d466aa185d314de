"""Patches of a view to fewer tokens: S x S neighbours stand side by side (pixel shuffle).

Tokens come row by row; within one, the patches of its first row stand first.
"""

from __future__ import annotations

import math

from torch import Tensor, nn


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
        patches = self.norm(x)[:, 1:]
        n = math.isqrt(patches.shape[1]) // self.scale
        grid = patches.reshape(n, self.scale, n, self.scale, -1).transpose(1, 2)
        features: Tensor = self.projector(grid.reshape(1, n * n, -1))
        return features
