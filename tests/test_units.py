"""How long the rest of some steps takes."""

from __future__ import annotations

import pytest

from edgevlm.units import TimeLeft


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((10, 12, 44), ["", ", about 40 s left", ", about 14 s left", ", about 42 s left"]),
        ((600, 660), ["", ", about 40 min left", ", about 12 min left"]),
        ((0.1, 0.2, 0.3), ["", "", "", ""]),
    ],
)
def test_steps_of_a_kind_are_alike(ends, expected):
    times = iter((0, *ends))
    left = TimeLeft(["a", "b", "b", "c", "c"], lambda: next(times))
    assert [left.begin(index) for index in range(len(expected))] == expected
