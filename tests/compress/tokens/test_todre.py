"""ToDRE stage 1 by hand, against a plain loop, and in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.tokens.todre import Method, select
from edgevlm.graphs.visual_shape import VisualShape


def plain(features: torch.Tensor, attention: torch.Tensor, kept: int) -> list[int]:
    """The definition, in float64: each step sums all cosines anew."""
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    cosine = rows @ rows.T
    picks = [int(attention.argmax())]
    while len(picks) < kept:
        left = [i for i in range(len(rows)) if i not in picks]
        picks.append(min(left, key=lambda i: float(cosine[i, picks].sum())))
    return picks


def test_by_hand() -> None:
    """Directions 0, 10, 90 and 180 degrees; token 1 is attended to most.

    Sums are 0.98, 0.17, -0.98 for tokens 0, 2, 3: token 3. Then 0.98 - 1 = -0.02 for token 0 and
    0.17 + 0 for token 2: token 0.
    """
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 180.0]))
    lengths = torch.tensor([1.0, 5.0, 0.1, 2.0]).unsqueeze(1)  # cosine does not see them
    features = lengths * torch.stack([angles.cos(), angles.sin()], 1)
    attention = torch.tensor([[0.1, 0.6, 0.2, 0.1]])
    assert select(features, attention.argmax(1), 4).tolist() == [1, 3, 0, 2]
    kept, positions = Method(tokens=3)(features[None], cls_attention=attention)
    assert positions.tolist() == [[0, 1, 3]]
    assert torch.equal(kept[0], features[[0, 1, 3]])


@pytest.mark.parametrize("name", ["fastervlm", "vispruner"])
def test_equals_plain_loop(name: str, vectors: Any, trace: Any, engine: Any) -> None:
    """Same picks in the same order on recorded features and attention, in ONNX Runtime too."""
    for case in vectors(name):
        count = int(case["param_K"])
        for row, features in enumerate(torch.from_numpy(case["in_features"])):
            attention = torch.from_numpy(case["in_cls_attention"][row]).mean(0, keepdim=True)
            picks = select(features, attention.argmax(1), count)
            assert picks.tolist() == plain(features, attention, count)
            if row or len(features) > 200:
                continue

            def call(x: torch.Tensor, a: torch.Tensor, count: int = count) -> torch.Tensor:
                return select(x, a.argmax(1), count)

            (found,) = engine(trace(call, features, attention))(features, attention)
            np.testing.assert_array_equal(found, picks)


def test_starts_in_the_thumbnail() -> None:
    """Token 5 of a tile is attended to more, but token 2 is the best of the thumbnail."""
    attention = torch.tensor([[0.1, 0.1, 0.4, 0.1, 0.1, 0.9, 0.1, 0.1]])
    features = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0))
    for view, first in (("first", 2), ("last", 5), ("", 5)):
        shape = VisualShape(((2, 2), (2, 2)), 4, (1, 1), view)
        _, positions = Method(tokens=1)(features, cls_attention=attention, shape=shape)
        assert positions.tolist() == [[first]]


def test_never_twice() -> None:
    """When all tokens are equal the picks are the start and then the first tokens, each once."""
    features, first = torch.ones(9, 4), torch.tensor([4])
    assert select(features, first, 5).tolist() == [4, 0, 1, 2, 3]
    assert sorted(select(features, first, 9).tolist()) == list(range(9))


def test_a_pick_is_three_nodes(trace: Any) -> None:
    """Argmin, gather, add."""
    features, attention = torch.zeros(1, 96, 8), torch.zeros(1, 96)
    sizes = []
    for kept in (32, 64):

        def call(x: torch.Tensor, a: torch.Tensor, kept: int = kept) -> Any:
            return Method(tokens=kept)(x, cls_attention=a)

        nodes = trace(call, features, attention).graph.nodes
        sizes.append(sum(node.op == "call_function" for node in nodes))
    assert sizes[1] - sizes[0] == 3 * 32
