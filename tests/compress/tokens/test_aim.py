"""AIM's merging against its reference, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgevlm.compress.tokens.aim import Method, halve
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """Tokens 0 and 1 are alike, 2 and 3 too: two rounds end in the mean of the two means."""
    features = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 3.0]]])
    half, positions = Method(tokens=2)(features)
    assert half.tolist() == [[[2.0, 0.0], [0.0, 2.0]]]
    assert positions.tolist() == [[1, 3]]
    assert Method(tokens=1)(features)[0].tolist() == [[[1.0, 1.0]]]


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """The rows of each round in the original's order; of all rounds in ONNX Runtime too."""
    for case in vectors("aim_merge"):
        rounds = int(case["param_rounds"])
        for number in range(1, rounds + 1):
            expected = case[f"out_round{number}"]

            def merged(x: Tensor, kept: int = expected.shape[1]) -> Tensor:
                return torch.stack([halve(frame, kept)[0] for frame in x])

            x = torch.from_numpy(case["in_x"])
            bound = {"rtol": 0, "atol": 1e-5 * np.abs(expected).max()}
            np.testing.assert_allclose(merged(x), expected, **bound)
            if number == rounds:
                np.testing.assert_allclose(engine(trace(merged, x))(x)[0], expected, **bound)


def test_frames_stay_separate(features: Tensor) -> None:
    """Each grid gets its share, and no row mixes two grids."""
    clip = torch.cat([features, -features], 1)
    shape = VisualShape(((8, 8), (8, 8)), 16)
    kept, positions = Method(tokens=20)(clip, shape=shape)
    alone, _ = Method(tokens=10)(features)
    assert (positions < 64).sum() == 10
    torch.testing.assert_close(kept, torch.cat([alone, -alone], 1), rtol=0, atol=1e-6)
