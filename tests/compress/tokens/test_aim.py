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
    """The rows of each round in the original's order, in ONNX Runtime too, one from the other."""
    for case in vectors("aim_merge"):
        expected = [case[f"out_round{n}"] for n in range(1, int(case["param_rounds"]) + 1)]
        x = torch.from_numpy(case["in_x"])

        def rounds(x: Tensor, expected: list[Any] = expected) -> list[Tensor]:
            found = []
            for kept in (rows.shape[1] for rows in expected):
                x = torch.stack([halve(frame, kept)[0] for frame in x])
                found.append(x)
            return found

        at_once = [torch.stack([halve(f, rows.shape[1])[0] for f in x]) for rows in expected]
        for found in (at_once, rounds(x), engine(trace(rounds, x))(x)):
            for rows, wanted in zip(found, expected, strict=True):
                bound = 1e-5 * np.abs(wanted).max()
                np.testing.assert_allclose(rows, wanted, rtol=0, atol=bound)


def test_frames_stay_separate(features: Tensor) -> None:
    """Each grid gets its share, and no row mixes two grids."""
    clip = torch.cat([features, -features], 1)
    shape = VisualShape(((8, 8), (8, 8)), 16)
    kept, positions = Method(tokens=20)(clip, shape=shape)
    alone, _ = Method(tokens=10)(features)
    assert (positions < 64).sum() == 10
    torch.testing.assert_close(kept, torch.cat([alone, -alone], 1), rtol=0, atol=1e-6)
