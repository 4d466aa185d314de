"""The strided baseline: by hand, over tiles, constant in the graph."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from edgevlm.compress.tokens.strided import Method, middles
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """Runs of four tokens: the third of each."""
    features = torch.arange(16.0).reshape(1, 16, 1)
    kept, positions = Method(tokens=4)(features)
    assert positions.tolist() == [[2, 6, 10, 14]]
    assert kept.flatten().tolist() == [2.0, 6.0, 10.0, 14.0]


@pytest.mark.parametrize("total", [1, 7, 64, 100])
def test_equal_distances(total: int) -> None:
    """Any K: distinct, inside, gaps differ by one at most, ends are as far as the start."""
    for kept in range(1, total + 1):
        places = middles(total, kept)
        gaps = {b - a for a, b in pairwise(places)}
        assert len(set(places)) == kept
        assert max(gaps, default=1) - min(gaps, default=1) <= 1
        assert abs(places[0] - (total - 1 - places[-1])) <= 1
    assert middles(total, total) == list(range(total))


def test_each_tile_keeps_its_share() -> None:
    """Eight and four tokens: two and one."""
    shape = VisualShape(((2, 4), (2, 2)), 1)
    assert Method(tokens=3)(torch.zeros(1, 12, 1), shape=shape)[1].tolist() == [[2, 6, 10]]
    with pytest.raises(PlanError, match=r"^strided: got tokens=1 for 2 grids"):
        Method(tokens=1).plan(shape)


def test_positions_are_constants(features: torch.Tensor, trace: Any) -> None:
    """The graph is one gather with constant indices."""
    names = [
        str(node.target)
        for node in trace(Method(tokens=16), features).graph.nodes
        if node.op == "call_function"
    ]
    assert names.count("aten.index_select.default") == 1
    assert not [name for name in names if "topk" in name]
