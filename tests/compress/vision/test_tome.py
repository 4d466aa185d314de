"""ToMe's plans in the encoder, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgevlm.compress.vision.tome import Method
from edgevlm.errors import PlanError


def test_plans() -> None:
    """Patches left after each layer."""
    assert Method(patches=64, by=3).plan(100, 4) == (88, 76, 64, 64)
    assert Method(patches=64).plan(100, 4) == (88, 76, 64, 64)
    assert Method(r=30).plan(100, 4) == (70, 40, 20, 10)


def test_merges_by_keys() -> None:
    """The two tokens with equal keys become their mean, weighted by size; the class token stays."""
    x, size = torch.tensor([[9.0], [0.0], [6.0], [3.0]]), torch.tensor([[1.0], [1.0], [2.0], [1.0]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    merged, sizes, token_of = Method(r=1)(x, keys, size, 1, True)
    assert merged.tolist() == [[9.0], [0.0], [5.0]]
    assert sizes.tolist() == [[1.0], [1.0], [3.0]]
    assert token_of.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": 64}, r"^tome: got patches=64, expected less than 64 \(those"),
        ({"patches": 8, "by": 2}, "^tome: 64 patches cannot become 8 in 2 layers, hal"),
        ({"patches": 32, "by": 5}, "^tome: got by=5, the encoder has 4 layers"),
    ],
)
def test_impossible_plans(options: dict[str, Any], message: str) -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=message):
        Method(**options).plan(64, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "^give patches "),
        ({"patches": 4, "r": 4}, "^give patches "),
        ({"by": 4, "r": 4}, "^give patches "),
        ({"r": 0}, "^r must be at least 1, got 0$"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=message):
        Method(**options)
