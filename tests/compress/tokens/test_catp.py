"""CATP's first stage by hand, against the sum that it raises, and over several pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgevlm.compress.tokens.catp import Method, cover
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """Token 1 lies between 0 and 2 and represents both; then 3, which none represents."""
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
