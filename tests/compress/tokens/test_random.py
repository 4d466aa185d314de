"""The random baseline: seeded, without replacement, constant in the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgevlm.compress.tokens.random import Method, draw


def test_by_hand() -> None:
    """A pinned draw: a change of NumPy's stream would change published baselines."""
    features = torch.arange(10.0).reshape(1, 10, 1)
    kept, positions = Method(tokens=4, seed=7)(features)
    assert positions.tolist() == [[5, 6, 8, 9]]
    assert kept.flatten().tolist() == positions.flatten().tolist()


def test_seed_decides(features: torch.Tensor) -> None:
    """Same seed, same tokens; another seed, others."""
    first, again, other = (Method(tokens=16, seed=s)(features)[1].tolist() for s in (3, 3, 4))
    assert first == again
    assert first != other
    assert Method().seed == 0


def test_every_token_is_equally_likely() -> None:
    """5 of 20 over 2000 seeds: 500 each, and 5 standard deviations are about 97."""
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[list(draw(20, 5, seed))] += 1
    assert 403 < counts.min() <= counts.max() < 597


def test_positions_are_constants(features: torch.Tensor, trace: Any) -> None:
    """The graph draws nothing: one gather with constant indices."""
    program = trace(Method(tokens=16), features)
    assert len(program.constants) == 2
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count("aten.index_select.default") == 1
    assert not [name for name in names if "rand" in name]


def test_wrong_seed() -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=r"^seed must be 0 or more, got -1$"):
        Method(tokens=4, seed=-1)
    with pytest.raises(TypeError):
        Method(tokens=4, seed="x")  # type: ignore[arg-type]
