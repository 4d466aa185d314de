"""rel_error and psnr_db, by numbers that are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgevlm.parity.compare import WORST_REL_ERROR, Comparator, difference


def one(*values):
    return {"y": np.array(values, np.float32)}


def test_difference_by_hand():
    """max|a - e| = 1, max|e| = 3, rmse = sqrt((1 + 0 + 0 + 1) / 4)."""
    rel_error, psnr_db = difference(np.array([0.0, 2, 3, 4]), np.array([1.0, 2, 3, 3]))
    assert rel_error == pytest.approx(1 / 3)
    assert psnr_db == pytest.approx(20 * math.log10(3 / math.sqrt(2 / 4)))


def test_equal_arrays_have_no_psnr():
    zeros = np.zeros(3)
    assert difference(zeros, zeros) == (0.0, None)
    assert difference(zeros + 7, zeros + 7) == (0.0, None)


def test_zeros_are_measured_against_1():
    """max|e| = 0 divides by nothing: 0.5 beside zeros is 0.5, and 20 log10(1 / 0.5) dB."""
    rel_error, psnr_db = difference(np.full(4, 0.5), np.zeros(4))
    assert rel_error == 0.5
    assert psnr_db == pytest.approx(20 * math.log10(2))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_one_number_that_is_not_finite_is_the_worst_difference(number, side):
    arrays = [np.ones(1000), np.ones(1000)]
    arrays[side][7] = number
    assert difference(*arrays) == (WORST_REL_ERROR, 0.0)
    comparator = Comparator()
    comparator.add("b", "f", one(1.0), one(1.0))
    comparator.add("b", "f", {"y": arrays[0]}, {"y": arrays[1]})
    comparator.add("b", "f", one(1.0), one(1.0))
    assert comparator.rel_error("b", "f") == WORST_REL_ERROR
    assert comparator.psnr_db("b", "f") == 0.0


def test_rel_error_is_of_the_worst_call_and_psnr_of_all():
    """Errors 1 of 10 and 1 of 2: the second call is worse alone; together max|e| = 10."""
    comparator = Comparator()
    comparator.add("b", "f", one(11.0, 0.0), one(10.0, 0.0))
    comparator.add("b", "f", one(3.0, 0.0), one(2.0, 0.0))
    assert comparator.rel_error("b", "f") == 0.5
    assert comparator.psnr_db("b", "f") == pytest.approx(20 * math.log10(10 / math.sqrt(2 / 4)))


def test_outputs_are_measured_apart_and_the_worst_counts():
    """`large` hides nothing of `small`: 1 of 2 is 6 dB, though 1 of 1000 beside it is 60."""
    comparator = Comparator()
    actual = {"large": np.array([1001.0]), "small": np.array([3.0]), "same": np.array([5.0])}
    expected = {"large": np.array([1000.0]), "small": np.array([2.0]), "same": np.array([5.0])}
    comparator.add("b", "f", actual, expected)
    assert comparator.rel_error("b", "f") == 0.5
    assert comparator.psnr_db("b", "f") == pytest.approx(20 * math.log10(2))


def test_functions_are_measured_apart():
    comparator = Comparator()
    comparator.add("b", "prefill", one(2.0), one(1.0))
    comparator.add("b", "decode", one(1.0), one(1.0))
    comparator.add("c", "decode", one(1.5), one(1.0))
    assert comparator.rel_error("b", "prefill") == 1.0
    assert (comparator.rel_error("b", "decode"), comparator.psnr_db("b", "decode")) == (0.0, None)
    assert comparator.rel_error("c", "decode") == 0.5


def test_a_function_that_was_never_called_has_no_measure():
    with pytest.raises(KeyError):
        Comparator().rel_error("b", "f")
    with pytest.raises(KeyError):
        Comparator().psnr_db("b", "f")
