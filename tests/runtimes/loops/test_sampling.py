"""How a token is chosen from scores."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.sampling import Sampling, chooser


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.0, {2}), (0.5, {2}), (0.51, {0, 2}), (0.8, {0, 2}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_of_that_mass(top_p, kept):
    logits = np.log(np.asarray([0.3, 0.125, 0.5, 0.075], np.float32))
    choose = chooser(Sampling(temperature=1.0, top_p=top_p, seed=1))
    assert {choose(logits) for _ in range(400)} == kept


def test_temperature_sharpens():
    logits = np.log(np.asarray([0.4, 0.6], np.float32))

    def share(temperature):
        choose = chooser(Sampling(temperature=temperature, seed=0))
        return sum(choose(logits) for _ in range(500)) / 500

    assert share(0.0) == 1.0
    assert share(0.1) > share(1.0) > share(10.0)
    assert abs(share(1.0) - 0.6) < 0.06


def test_equal_scores_give_the_first_token():
    assert chooser(Sampling())(np.zeros(5, np.float32)) == 0
    assert chooser(Sampling(1.0, top_p=0.0))(np.zeros(5, np.float32)) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be at least 0, got inf"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": None}, "temperature must be a number, got NoneType"),
        ({"temperature": 10**400}, "temperature must be a number, got int"),
        ({"top_p": 1.5}, "top_p must be from 0 to 1, got 1.5"),
        ({"top_p": "1"}, "top_p must be a number, got '1'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"seed": "7"}, "seed must be a whole number, got '7'"),
    ],
)
def test_numbers_that_no_distribution_has_are_one_line(options, text):
    with pytest.raises(InputError) as error:
        Sampling(**options)
    assert str(error.value) == text


def test_fractions_are_numbers_too():
    sampling = Sampling(Fraction(1, 2), Fraction(1, 3), seed=1)
    assert chooser(sampling)(np.asarray([1.0, 3.0], np.float32)) == 1


def test_the_smallest_temperature_is_greedy():
    logits = np.asarray([1.0, 3.0, 2.0], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chooser(Sampling(temperature=5e-324))(logits) == 1
