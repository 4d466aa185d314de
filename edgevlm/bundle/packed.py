"""Low-bit matrices: integers row by row, and a scale for each group of columns.

    f16     float16, no scales
    w8g64   value = (byte - 128) scale, a scale for 64 columns
    w4g32   value = (nibble - 8) scale, two to a byte, low nibble first, a scale for 32 columns

The number of largest magnitude in a group becomes the lowest integer, so that the full range is
used; the scale may be negative. Columns are padded with zeros to whole groups. The layout is
that of ONNX Runtime's MatMulNBits, so the rows of an embedding table and the head's matrix are the
same bytes.

Source: onnxruntime docs/ContribOperators.md, MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Packing:
    """Bits of a number, 4, 8 or 16 (float16), and columns that share a scale; 0 without scales."""

    bits: int
    group: int

    def groups(self, columns: int) -> int:
        """Scales of a row."""
        return -(-columns // self.group) if self.group else 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of the numbers of a row."""
        return (self.groups(columns) * self.group or columns) * self.bits // 8

    def bytes(self, columns: int) -> int:
        """Bytes of a row, its scales included."""
        return self.row_bytes(columns) + 4 * self.groups(columns)


PACKINGS = {"f16": Packing(16, 0), "w8g64": Packing(8, 64), "w4g32": Packing(4, 32)}


def pack(matrix: Array, packing: Packing) -> tuple[Array, Array]:
    """Round a matrix.

    Args:
        matrix: f32 [rows, columns].
        packing: How.

    Returns:
        Numbers u8 [rows, row_bytes], scales f32 [rows, groups].
    """
    rows, columns = matrix.shape
    if packing.bits == 16:
        return matrix.astype(np.float16).view(np.uint8), np.zeros((rows, 0), np.float32)
    groups, half = packing.groups(columns), 1 << (packing.bits - 1)
    wide = np.pad(matrix, ((0, 0), (0, groups * packing.group - columns)))
    runs = wide.reshape(rows, groups, packing.group)
    most = np.abs(runs).argmax(-1)
    scales = np.take_along_axis(runs, most[..., None], -1)[..., 0] / np.float32(-half)
    steps = np.divide(
        runs, scales[..., None], where=scales[..., None] != 0, out=np.zeros_like(runs)
    )
    numbers = np.clip(np.rint(steps) + half, 0, 2 * half - 1).astype(np.uint8).reshape(rows, -1)
    if packing.bits == 4:
        numbers = numbers[:, ::2] | numbers[:, 1::2] << 4
    return numbers, scales


def unpack(numbers: Array, scales: Array, packing: Packing, columns: int) -> Array:
    """The rounded matrix, f32 [..., columns].

    Args:
        numbers: u8 [..., row_bytes].
        scales: f32 [..., groups].
        packing: How they were rounded.
        columns: Columns without padding.
    """
    if packing.bits == 16:
        return numbers.view(np.float16).astype(np.float32)
    if packing.bits == 4:
        *rows, half = numbers.shape
        numbers = np.stack([numbers & 15, numbers >> 4], -1).reshape(*rows, 2 * half)
    runs = numbers.reshape(*scales.shape, packing.group).astype(np.float32)
    values = (runs - np.float32(1 << (packing.bits - 1))) * scales[..., None]
    *rows, groups = scales.shape
    flat: Array = values.reshape(*rows, groups * packing.group)[..., :columns]
    return flat
