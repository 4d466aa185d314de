"""Density peaks against HoT's function."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgevlm.compress.tokens.dpc_knn import Method
from edgevlm.graphs.clips.density import distances, peaks


def test_centres_equal_reference(vectors: Any) -> None:
    for case in vectors("hot_tpc"):
        x, noise = (torch.from_numpy(case[f"in_{name}"]) for name in ("x", "density_noise"))
        there = torch.ones(x.shape[:2]) > 0
        score = peaks(distances(x), there, int(case["param_k"]), noise)
        chosen = score.topk(int(case["param_token_num"])).indices
        assert chosen.tolist() == case["out_center_indices_by_score"].tolist()


def test_points_that_are_not_there_count_for_nothing() -> None:
    points = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    there = torch.tensor([[True] * 6 + [False] * 3])
    few = peaks(distances(points[:, :6]), there[:, :6], 3, torch.zeros(1, 6))
    all_ = peaks(distances(points), there, 3, torch.zeros(1, 9))
    torch.testing.assert_close(all_[:, :6], few, rtol=1e-6, atol=1e-7)
    assert all_[0, 6:].tolist() == [-1.0] * 3


def test_what_stays_is_kept_once(engine: Any, trace: Any) -> None:
    """Of four copies of a frame each token is kept once, in ONNX Runtime too."""
    frame = 3 * torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
    clip, method = frame.repeat(1, 4, 1), Method(tokens=5)
    for _, positions in (method(clip), engine(trace(method, clip))(clip)):
        assert sorted(int(p) % 5 for p in positions[0]) == [0, 1, 2, 3, 4]


def test_a_token_is_no_neighbourhood() -> None:
    with pytest.raises(ValueError, match="neighbours counts the token itself, at least 2, got 1"):
        Method(tokens=4, neighbours=1)
