"""A schedule as a plan, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from edgevlm.compress.decoder.schedule import Method
from edgevlm.errors import PlanError


def test_plans() -> None:
    """Visual tokens that each of eight layers sees."""
    assert Method(stages="6x64+2x4").plan(64, 8) == (*[64] * 6, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": "2x64"}, "^schedule: got stages of 2 layers, expected 4"),
        ({"stages": "4x8"}, "^schedule: the first stage has 8 tokens, expected"),
        ({"stages": "1x64+1x8+2x9"}, "^schedule: got 9 tokens from layer 2 on"),
    ],
)
def test_impossible_plans(options: dict[str, Any], message: str) -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=message):
        Method(**options).plan(64, 4)


def test_wrong_options() -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=r"^stages look like 8x64"):
        Method(stages="8")
