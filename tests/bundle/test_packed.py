"""Rounding of matrices to few bits: by hand, and how far a number can be off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgevlm.bundle.packed import PACKINGS, Packing, pack, unpack

NUMBERS = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


def test_four_bits_by_hand():
    """The largest, 8, becomes the lowest whole number; two to a byte, the low half first."""
    numbers, scales = pack(np.array([[8, -7, 0, 1.4]], np.float32), Packing(4, 4))
    assert scales.tolist() == [[-1.0]]
    assert numbers.tolist() == [[0 | 15 << 4, 8 | 7 << 4]]  # 0, 15, 8, 7
    assert unpack(numbers, scales, Packing(4, 4), 4).tolist() == [[8.0, -7.0, 0.0, 1.0]]


def test_eight_bits_by_hand():
    numbers, scales = pack(np.array([[-64, 32, 0.2]], np.float32), Packing(8, 4))
    assert scales.tolist() == [[0.5]]
    assert numbers.tolist() == [[0, 192, 128, 128]]
    assert unpack(numbers, scales, Packing(8, 4), 3).tolist() == [[-64.0, 32.0, 0.0]]


def test_halves_are_float16():
    matrix = np.array([[1.0, -0.1, 70000.0 / 2]], np.float32)
    numbers, scales = pack(matrix, PACKINGS["f16"])
    assert (numbers.shape, scales.shape) == ((1, 6), (1, 0))
    assert (PACKINGS["f16"].row_bytes(3), PACKINGS["f16"].bytes(3)) == (6, 6)
    found = unpack(numbers, scales, PACKINGS["f16"], 3)
    assert found.tolist() == matrix.astype(np.float16).astype(np.float32).tolist()


@pytest.mark.parametrize("name", [name for name in PACKINGS if name != "f16"])
@given(data=st.data())
def test_no_number_is_off_by_more_than_a_step(name, data):
    packing = PACKINGS[name]
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 150)))
    matrix = data.draw(arrays.arrays(np.float32, shape, elements=NUMBERS))
    numbers, scales = pack(matrix, packing)
    assert numbers.shape == (shape[0], packing.row_bytes(shape[1]))
    found = unpack(numbers, scales, packing, shape[1])
    assert found.shape == shape
    step = np.abs(scales).repeat(packing.group, 1)[:, : shape[1]]
    off = np.abs(found - matrix)
    assert (off <= 1.001 * step).all()
    # Only what would need one number more than there is, is off by more than half a step.
    ends = np.abs(matrix) > step * ((1 << (packing.bits - 1)) - 1.5)
    assert (off[~ends] <= 0.501 * step[~ends]).all()


def test_rows_are_unpacked_by_themselves():
    matrix = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    for packing in PACKINGS.values():
        numbers, scales = pack(matrix, packing)
        whole = unpack(numbers, scales, packing, 96)
        assert np.array_equal(unpack(numbers[3], scales[3], packing, 96), whole[3])
        assert np.array_equal(unpack(numbers[[4, 0]], scales[[4, 0]], packing, 96), whole[[4, 0]])


@pytest.mark.parametrize("name", sorted(PACKINGS))
def test_no_rows_are_a_matrix_of_no_rows(name):
    numbers, scales = pack(np.zeros((3, 70), np.float32), PACKINGS[name])
    assert unpack(numbers[:0], scales[:0], PACKINGS[name], 70).shape == (0, 70)
