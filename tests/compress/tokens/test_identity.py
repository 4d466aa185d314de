"""Identity keeps all."""

from __future__ import annotations

import pytest
import torch

from edgevlm.compress.tokens.identity import Method
from edgevlm.errors import PlanError


def test_by_hand() -> None:
    """Three tokens in, the same three out."""
    features = torch.tensor([[[1.0], [2.0], [3.0]]])
    kept, positions = Method()(features)
    assert kept is features
    assert positions.tolist() == [[0, 1, 2]]
    assert Method(tokens=3)(features)[0] is features


def test_refuses_another_budget() -> None:
    """The message says what identity is for."""
    message = (
        r"^identity: got tokens=2, expected 3: identity keeps all of them;"
        r" choose another method to keep fewer$"
    )
    with pytest.raises(PlanError, match=message):
        Method(tokens=2)(torch.zeros(1, 3, 1))
