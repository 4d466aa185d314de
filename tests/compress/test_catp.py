"""CATP's stages by hand, the first against the sum that it raises and over several pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgevlm.compress.catp import DecoderMethod, Method, cover
from edgevlm.errors import PlanError
from edgevlm.graphs.pruning import Look, Pruning
from edgevlm.graphs.selection import VisualShape


def test_by_hand() -> None:
    """Token 1 lies between 0 and 2 and stands for both; then 3, which no one stands for."""
    features = torch.tensor([[[2.0, 1.0], [1.0, 1.0], [1.0, 2.0], [-1.0, -1.2]]])
    kept, positions = Method(tokens=2)(features)
    assert positions.tolist() == [[1, 3]]
    assert torch.equal(kept, features[:, [1, 3]])


def test_each_step_raises_the_sum_most(features: Tensor) -> None:
    """The set of k + 1 tokens is that of k and the one with the largest sum, by trying all."""
    rows = torch.nn.functional.normalize(features[0], dim=-1).double()
    alike = (rows @ rows.T + 1) / 2
    chosen: list[int] = []
    for kept in range(1, 9):
        sums = [alike[[*chosen, i]].amax(0).sum() for i in range(64)]
        chosen.append(int(torch.stack(sums).argmax()))
        assert cover(features[0], kept).tolist() == sorted(chosen)


def test_pictures_stay_separate(features: Tensor, trace: Any, engine: Any) -> None:
    """Each grid gets its share and is covered by its own tokens; ONNX Runtime agrees."""
    both = torch.cat([features, features.flip(1)], 1)
    shape = VisualShape(((8, 8), (8, 8)), 16)
    _, positions = Method(tokens=12)(both, shape=shape)
    assert positions[0, :6].tolist() == cover(features[0], 6).tolist()
    assert positions[0, 6:].tolist() == (cover(features[0].flip(0), 6) + 64).tolist()

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        return Method(tokens=12)(x, shape=shape)

    assert engine(trace(run, both))(both)[1].tolist() == positions.tolist()


class Seen(Look):
    """A layer whose last row attends as it is told to."""

    def last_to_visual(self) -> Tensor:
        """What was given as the rotary table."""
        return self.cos


def test_the_second_stage_by_hand() -> None:
    """Tokens 1 and 2 gain attention; 3 is what the question speaks of; 0 loses."""
    hidden = torch.tensor([[[0.0, 1], [1, 0], [-1, 0], [0, 1], [1, 0.1], [0, 2], [0, 4], [5, 0]]])
    visual, last = torch.tensor([1, 2, 3, 4]), torch.tensor([6])  # row 7 fills up the call
    layer: Any = None
    before = Seen(layer, hidden, torch.tensor([0.9, 0.0, 0.2, 0.2]), hidden, visual, last)
    now = torch.tensor([0.1, 0.7, 0.3, 0.2])
    look = Seen(layer, hidden, now, hidden, visual, last, before)
    # 0.6 times the cosines with (0, 6), and what was gained: 0, 0.7, 0.6 + 0.1, 0.06
    assert DecoderMethod()(look, hidden, 3)[1].tolist() == [1, 2, 3]
    assert DecoderMethod()(look, hidden, 2)[1].tolist() == [1, 2]


def test_the_layers_that_it_looks_at() -> None:
    """The default layer, and layers that are not there."""
    assert DecoderMethod().plan(8, 32) == (*[8] * 7, *[4] * 25)
    assert DecoderMethod(tokens=3).plan(8, 3) == (8, 8, 3)
    with pytest.raises(PlanError, match=r"^catp: got layer 1, expected 2 or more"):
        DecoderMethod(layer=1).plan(8, 3)
    assert Pruning(DecoderMethod(), (8, 8, 3), 8, (1.0,)).joined == 1
    assert Pruning(DecoderMethod(), (8, 8, 8), 8, (1.0,)).joined is None
