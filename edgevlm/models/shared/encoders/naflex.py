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


def unpacked(patches: Any, shapes: Any, size: int) -> NDArray[Any]:
    """The first view f32 [1, 3, h_px, w_px] of what a processor packs.

    Args:
        patches: f32 [P, most, p * p * 3]; what follows a view's own fills up.
        shapes: Rows and columns of each, [P, 2].
        size: p.
    """
    rows, columns = (int(n) for n in shapes[0])
    cut = patches[0][: rows * columns].reshape(rows, columns, size, size, 3)
    view: NDArray[Any] = cut.transpose(4, 0, 2, 1, 3)
    return view.reshape(1, 3, rows * size, columns * size)
