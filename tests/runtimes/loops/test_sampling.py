"""How a token is chosen from scores."""

from __future__ import annotations

import numpy as np
import pytest

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
