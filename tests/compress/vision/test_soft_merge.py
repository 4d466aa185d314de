"""Soft merging by hand, its plans and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.vision.soft_merge import Method
from edgevlm.errors import PlanError


def test_every_token_is_mixed_into_targets() -> None:
    """Sizes add up; a token between two targets is mixed into both; the class token stays."""
    keys = torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
    x, size = torch.arange(5.0)[:, None], torch.tensor([[5.0], [1.0], [2.0], [1.0], [1.0]])
    method = Method(patches=2)
    merged, sizes, token_of = method(x, keys, size, 2, True)  # targets are tokens 1 and 3
    assert (merged[0], sizes[0], token_of.tolist()) == (0, 5, [0, 1, 1, 2, 2])
    np.testing.assert_allclose(sizes[1:], [[2.0], [3.0]], rtol=0, atol=1e-5)
    np.testing.assert_allclose(merged[1:], [[(1 + 2) / 2], [(2 + 3 + 4) / 3]], rtol=0, atol=1e-5)


def test_plans() -> None:
    """Patches left after each layer."""
    assert Method(patches=30).plan(64, 6) == (64, 30, 30, 30, 30, 30)
    assert Method(patches=9, layer=3).plan(64, 3) == (64, 64, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": 64}, "^soft_merge: got patches=64, expected less than 64"),
        ({"patches": 4, "layer": 5}, "^soft_merge: got layer=5, the encoder has 4 layers"),
    ],
)
def test_impossible_plans(options: dict[str, Any], message: str) -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=message):
        Method(**options).plan(64, 4)


def test_wrong_options() -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=r"^layer must be at least 1"):
        Method(patches=4, layer=0)
