"""CATP's second stage by hand, and its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgevlm.compress.decoder.catp import Method
from edgevlm.errors import PlanError
from edgevlm.graphs.pruning import Look, Pruning


class FixedAttention(Look):
    """A layer with given attention of its last token."""

    def last_to_visual(self) -> Tensor:
        """Taken from the field of the rotary table."""
        return self.cos


def test_by_hand() -> None:
    """Tokens 1 and 2 gain attention; 3 is similar to the question; 0 loses."""
    hidden = torch.tensor([[[0.0, 1], [1, 0], [-1, 0], [0, 1], [1, 0.1], [0, 2], [0, 4], [5, 0]]])
    visual, last = torch.tensor([1, 2, 3, 4]), torch.tensor([6])  # row 7 fills up the call
    layer: Any = None
    before = FixedAttention(layer, hidden, torch.tensor([0.9, 0.0, 0.2, 0.2]), hidden, visual, last)
    now = torch.tensor([0.1, 0.7, 0.3, 0.2])
    look = FixedAttention(layer, hidden, now, hidden, visual, last, before)
    # 0.6 times the cosines with (0, 6), and the gained attention: 0, 0.7, 0.6 + 0.1, 0.06
    assert Method()(look, hidden, 3)[1].tolist() == [1, 2, 3]
    assert Method()(look, hidden, 2)[1].tolist() == [1, 2]


def test_layers() -> None:
    """The default layer, and layers that are not there."""
    assert Method().plan(8, 32) == (*[8] * 7, *[4] * 25)
    assert Method(tokens=3).plan(8, 3) == (8, 8, 3)
    with pytest.raises(PlanError, match=r"^catp: got layer 1, expected 2 or more"):
        Method(layer=1).plan(8, 3)
    assert Pruning(Method(), (8, 8, 3), 8, (1.0,)).joined == 1
    assert Pruning(Method(), (8, 8, 8), 8, (1.0,)).joined is None
