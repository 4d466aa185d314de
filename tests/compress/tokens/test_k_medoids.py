"""k-medoids against CenterCLIP's function, and in segments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgevlm.compress.tokens.k_medoids import Method, medoids
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def test_medoids_equal_reference(vectors: Any) -> None:
    compared = 0
    for case in vectors("centerclip"):
        if case["param_distance_cosine"] or case["param_pre_norm"]:
            continue
        for x, expected in zip(case["in_x"], case["out_medoids"], strict=True):
            chosen = medoids(torch.from_numpy(x), int(case["param_K"]), 12)
            assert sorted(chosen.tolist()) == expected.tolist()
            compared += 1
    assert compared >= 2


def test_segments_are_clustered_by_themselves(engine: Any, trace: Any) -> None:
    x = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(2))
    method = Method(tokens=6, segments=2)
    for tokens, positions in (method(x), engine(trace(method, x))(x)):
        first = sorted(medoids(x[0, :12], 3, 8).tolist())
        second = sorted((medoids(x[0, 12:], 3, 8) + 12).tolist())
        assert positions[0].tolist() == first + second
        torch.testing.assert_close(torch.as_tensor(tokens), x[:, first + second])


def test_segments_divide_frames_and_tokens() -> None:
    shape = VisualShape(((2, 2),) * 6, 8, frames=6)
    assert Method(tokens=12, segments=3).plan(shape) == 12
    for tokens, segments in ((12, 4), (10, 3)):
        with pytest.raises(PlanError, match=r"^k_medoids: got segments="):
            Method(tokens=tokens, segments=segments).plan(shape)
