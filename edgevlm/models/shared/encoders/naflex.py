"""Views as SigLIP 2 NaFlex takes them: packed patches with the grid of each (arXiv 2502.14786)."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def packed(pixel_values: Tensor, size: int) -> dict[str, Tensor]:
    """What the model's own forward takes for views f32 [P, 3, h_px, w_px].

    Args:
        pixel_values: The views.
        size: p, pixels of a patch's side.

    Returns:
        Patches f32 [P, N, p * p * 3], their mask i64 [P, N], rows and columns i64 [P, 2].
    """
    count, _, height, width = pixel_values.shape
    rows, columns = height // size, width // size
    cut = pixel_values.reshape(count, 3, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": cut.reshape(count, rows * columns, -1),
        "pixel_attention_mask": torch.ones(count, rows * columns, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[rows, columns]]).expand(count, 2),
    }


def unpacked(patches: Any, shapes: Any, size: int) -> NDArray[Any] | None:
    """The views f32 [P, 3, h_px, w_px] of what a processor packs; None where their grids differ.

    Args:
        patches: f32 [P, most, p * p * 3]; what follows a view's own fills up.
        shapes: Rows and columns of each, [P, 2].
        size: p.
    """
    (rows, columns), *others = ((int(rows), int(columns)) for rows, columns in shapes)
    if {*others} - {(rows, columns)}:
        return None
    cut = patches[:, : rows * columns].reshape(-1, rows, columns, size, size, 3)
    views: NDArray[Any] = cut.transpose(0, 5, 1, 3, 2, 4)
    return views.reshape(-1, 3, rows * size, columns * size)
