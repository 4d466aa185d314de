"""DivPrune against its reference, by hand, and where rounding could decide."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.tokens.divprune import Method, select
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """Directions 0, 10, 90 and 180 degrees.

    Nearest distances are 0.02, 0.02, 0.83 and 1: token 3 is first. Token 0 is opposite of it. Then
    token 2 is 1 away from both, token 1 only 0.02 from token 0.
    """
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 180.0]))
    lengths = torch.tensor([1.0, 5.0, 0.1, 2.0]).unsqueeze(1)  # cosine does not see them
    features = lengths * torch.stack([angles.cos(), angles.sin()], 1)
    assert select(features, 4).tolist() == [3, 0, 2, 1]
    kept, positions = Method(tokens=3)(features.unsqueeze(0))
    assert positions.tolist() == [[0, 2, 3]]
    assert torch.equal(kept[0], features[[0, 2, 3]])


def test_equals_reference(vectors: Any) -> None:
    """Same picks in the same order; features [N, D] and [1, N, D] are one."""
    for case in vectors("divprune"):
        features = torch.from_numpy(case["in_features"])
        kept = round(float(case["param_threshold_ratio"]) * len(features))
        assert select(features, kept).tolist() == case["out_selected"].tolist()
        assert select(features.unsqueeze(0), kept).tolist() == case["out_selected"].tolist()
        _, positions = Method(tokens=kept)(features.unsqueeze(0))
        assert positions[0].tolist() == case["out_keep_sorted"].tolist()


def test_onnx_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """ONNX Runtime makes the same picks in the same order."""
    for case in vectors("divprune"):
        features = torch.from_numpy(case["in_features"])
        program = trace(partial(select, kept=len(case["out_selected"])), features)
        (picks,) = engine(program)(features)
        np.testing.assert_array_equal(picks, case["out_selected"])


@pytest.mark.parametrize("kept", [20, 70])
def test_copies_do_not_flip(kept: int, trace: Any, engine: Any) -> None:
    """A still video of 3 frames: all distances come in copies, and the first copy wins."""
    frame = torch.randn(1, 25, 32, generator=torch.Generator().manual_seed(0))
    features = frame.repeat(1, 3, 1)
    _, positions = Method(tokens=kept)(features)
    if kept <= 25:
        assert int(positions.max()) < 25
    _, in_onnx = engine(trace(Method(tokens=kept), features))(features)
    np.testing.assert_array_equal(in_onnx, positions.numpy())


def test_groups_choose_side_by_side(trace: Any, engine: Any) -> None:
    """Each group picks as if it were alone; ONNX Runtime too."""
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    picks = select(features, 12, groups=3)
    for group in range(3):
        alone = select(features[group::3], 4) * 3 + group
        assert picks[picks % 3 == group].tolist() == alone.tolist()
    method = Method(tokens=12, groups=3)
    assert method.plan(VisualShape(((6, 10),), 8)) == 12
    _, positions = method(features.unsqueeze(0))
    assert positions[0].tolist() == sorted(picks.tolist())
    _, in_onnx = engine(trace(method, features.unsqueeze(0)))(features.unsqueeze(0))
    np.testing.assert_array_equal(in_onnx, positions.numpy())


def test_groups_must_divide() -> None:
    """One line that says what would."""
    with pytest.raises(PlanError, match=r"^divprune: got groups=5, expected a divisor of 12 "):
        Method(tokens=12, groups=5).plan(VisualShape(((6, 10),), 8))
    with pytest.raises(ValueError, match=r"^groups must be at least 1, got 0$"):
        Method(tokens=12, groups=0)


def test_never_twice() -> None:
    """When all distances are zero the picks are the first tokens, each once."""
    assert select(torch.ones(9, 4), 5).tolist() == [0, 1, 2, 3, 4]


def test_a_pick_is_three_nodes(trace: Any) -> None:
    """Argmax, gather, minimum: the graph grows by no more, and stays small."""
    features = torch.zeros(1, 96, 8)
    sizes = [
        sum(node.op == "call_function" for node in trace(Method(tokens=k), features).graph.nodes)
        for k in (32, 64)
    ]
    assert sizes[1] - sizes[0] == 3 * 32
    assert sizes[1] < 230
