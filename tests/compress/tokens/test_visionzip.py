"""VisionZip against its reference, by hand, and its budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.tokens.visionzip import Method
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def cases(vectors: Any) -> Any:
    """Method, inputs, expected dominant positions and expected rows by kind."""
    for case in vectors("visionzip"):
        dominant, contextual = int(case["param_dominant"]), int(case["param_contextual"])
        for row in range(len(case["out_tokens"])):
            inputs = {
                "features": torch.from_numpy(case["in_hidden_states"][row : row + 1, 1:]),
                "cls_attention": torch.from_numpy(case["in_cls_attention"][row]).mean(0)[None],
                "keys": torch.from_numpy(case["in_metric"][row : row + 1, 1:]),
            }
            picked = sorted(case["out_dominant_indices"][row, 1:] - 1)
            method = Method(tokens=dominant + contextual, contextual=contextual)
            yield method, inputs, picked, case["out_tokens"][row, 1:]


def check(tokens: Any, positions: Any, picked: list[int], expected: Any) -> None:
    """Dominant rows are the same; the others, in raster order, are the contextual rows."""
    isdominant = np.isin(positions[0], picked)
    assert positions[0][isdominant].tolist() == picked
    atol = 1e-4 * np.abs(expected).max()
    count = len(picked)
    np.testing.assert_allclose(tokens[0][isdominant], expected[:count], rtol=0, atol=atol)
    np.testing.assert_allclose(tokens[0][~isdominant], expected[count:], rtol=0, atol=atol)


def test_by_hand() -> None:
    """Token 3 is dominant; of 0, 1, 2, 4, 5 the targets are 0 and 2 (every second, two of them).

    Token 1 has the key of 0, tokens 4 and 5 that of 2.
    """
    features = torch.tensor([[1.0], [2.0], [10.0], [100.0], [30.0], [50.0]])[None]
    keys = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 1], [0, 3], [1, 5]])[None]
    attention = torch.tensor([[0.1, 0.1, 0.1, 0.5, 0.1, 0.1]])
    tokens, positions = Method(tokens=3, contextual=2)(
        features, cls_attention=attention, keys=keys, shape=VisualShape(((2, 3),), 1)
    )
    assert positions.tolist() == [[0, 2, 3]]
    assert tokens.flatten().tolist() == [1 + 2, 10 + 40, 100]


def test_equals_reference(vectors: Any) -> None:
    """Same rows; the original's row of the class token is left out."""
    for method, inputs, picked, expected in cases(vectors):
        shape = VisualShape(((1, inputs["features"].shape[1]),), 1)
        tokens, positions = method(**inputs, shape=shape)
        check(tokens.numpy(), positions.numpy(), picked, expected)


def test_onnx_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """ONNX Runtime gives the rows of the original."""
    for method, inputs, picked, expected in cases(vectors):
        if inputs["features"].shape[1] > 256:
            continue

        def call(features: Any, attention: Any, keys: Any, method: Any = method) -> Any:
            return method(features, cls_attention=attention, keys=keys)

        run = engine(trace(call, *inputs.values()))
        check(*run(*inputs.values()), picked, expected)


@pytest.mark.parametrize(("kept", "contextual"), [(64, 10), (128, 20), (192, 30), (1, 0)])
def test_paper_budgets(kept: int, contextual: int) -> None:
    """The paper's share of merged tokens, at any K."""
    shape = VisualShape(((24, 24),), 1)
    assert Method(tokens=kept)._budgets(shape, kept) == [(kept - contextual, contextual)]


def test_contextual_over_tiles() -> None:
    """Shares add up, and no grid merges more tokens than it keeps."""
    shape = VisualShape(((2, 4), (2, 2), (1, 3), (1, 1)), 1)
    for kept in range(4, 17):
        for contextual in range(kept + 1):
            budgets = Method(contextual=contextual)._budgets(shape, kept)
            assert sum(merged for _, merged in budgets) == contextual
            assert sum(map(sum, budgets)) == kept
            assert all(dominant >= 0 for dominant, _ in budgets)


@pytest.mark.parametrize("contextual", [0, 4])
def test_one_kind_only(contextual: int, features: torch.Tensor) -> None:
    """All dominant is a choice by attention, all contextual is a merge to a lattice."""
    attention = torch.arange(64.0)[None]
    _, positions = Method(tokens=4, contextual=contextual)(
        features, cls_attention=attention, keys=features
    )
    assert positions.tolist() == ([[0, 16, 32, 48]] if contextual else [[60, 61, 62, 63]])


def test_wrong_contextual() -> None:
    """Refused: negative at once, too many when K is known."""
    with pytest.raises(ValueError, match=r"merged tokens, 0 or more, got -1"):
        Method(tokens=4, contextual=-1)
    with pytest.raises(PlanError, match=r"^visionzip: got contextual=5, expected 0 to 4 \(the"):
        Method(tokens=4, contextual=5).plan(VisualShape(((4, 4),), 1))
