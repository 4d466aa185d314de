"""Tokens of each layer, and the options that name them."""

from __future__ import annotations

import pytest

from edgevlm.compress.shared.layer_counts import layer_counts, parse_numbers, stages_of
from edgevlm.errors import PlanError


def test_layer_counts() -> None:
    """From each named layer on as many tokens as are left there."""
    assert layer_counts("m", 9, 5, (1, 3), (4, 0)) == (9, 4, 4, 0, 0)
    assert layer_counts("m", 9, 2, (), ()) == (9, 9)


@pytest.mark.parametrize(
    ("at", "left", "message"),
    [
        (
            (1,),
            (4, 2),
            r"^m: got tokens=4\+2 for layers=1, expected a number of tokens for each layer; give"
            " both$",
        ),
        ((0,), (4,), r"^m: got layers \[0\], expected ascending numbers from 1 to 4 "),
        ((2, 2), (4, 2), r"^m: got layers \[2, 2\], expected ascending numbers from 1 to 4 "),
        ((1, 2), (4, 5), "^m: got 5 tokens from layer 2 on, expected 0 to 4$"),
    ],
)
def test_impossible_counts(at: tuple[int, ...], left: tuple[int, ...], message: str) -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=message):
        layer_counts("m", 9, 5, at, left)


def test_stages_in_a_model_of_another_depth() -> None:
    """As deep in parts of the whole; of stages that fall on one layer the last."""
    assert stages_of(32, (3, 7, 16), 32) == {3: 0, 7: 1, 16: 2}
    assert stages_of(6, (3, 7, 16), 32) == {1: 1, 3: 2}
    assert stages_of(2, (1, 2, 3), 4) == {1: 2}


def test_parse_numbers() -> None:
    """A lone number is one, and another form is refused."""
    assert parse_numbers("m", "layers", "8+16") == (8, 16)
    assert parse_numbers("m", "layers", 8) == (8,)
    with pytest.raises(ValueError, match=r"^layers of m are numbers with '\+' between them, got"):
        parse_numbers("m", "layers", "8,16")
    with pytest.raises(ValueError, match=r"^layers of m are numbers with '\+' between them, got"):
        parse_numbers("m", "layers", "²")
