"""LLaVA-PruMerge against its reference and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.tokens.prumerge import NEIGHBOURS, Method, merge_weights
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def cases(vectors: Any) -> Any:
    """K and step, features, attention, keys, and the expected indices and rows."""
    for case in vectors("prumerge"):
        query, keys = torch.from_numpy(case["in_cls_query"]), torch.from_numpy(case["in_keys"])
        attention = (query * keys.shape[-1] ** -0.5 @ keys[0].T).softmax(-1)[:, 1:]
        np.testing.assert_allclose(attention, case["out_cls_attn"], atol=1e-6)
        features = torch.from_numpy(case["in_features"])
        indices, rows = case["out_indices"][0], case["out_tokens"][0]
        step = int(int(1 / float(case["out_used_ratio"])) / 3) if case["param_plus"] else 0
        method = Method(tokens=len(rows), plus=step)
        yield method, features, attention, keys[:, 1:], indices, rows


def check(tokens: Any, positions: Any, indices: Any, expected: Any) -> None:
    """The rows of kept tokens by their positions; the one that is left is the sum of the pruned."""
    place = {int(p): row for row, p in enumerate(positions[0])}
    rows = [place.pop(int(i)) for i in indices] + list(place.values())
    atol = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(tokens[0][rows], expected, rtol=0, atol=atol)


def test_by_hand() -> None:
    """Token 1 is kept and gets its neighbours, all others; token 2 stands for all pruned ones."""
    features = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])[None]
    attention = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    tokens, positions = Method(tokens=2)(
        features, flat_cls_attention=attention, flat_keys=torch.ones(1, 4, 2)
    )
    assert positions.tolist() == [[1, 2]]
    rest = 0.1 * 1 + 0.3 * 100 + 0.2 * 1000
    assert tokens.flatten().tolist() == pytest.approx([10 + rest, rest])


def test_neighbours() -> None:
    """The 32 nearest by key, and not the token itself."""
    angles = torch.deg2rad(torch.arange(40.0))
    keys = torch.stack([angles.cos(), angles.sin()], 1)
    attention = torch.full((40,), 0.01)
    attention[0], attention[39] = 0.5, 0.4
    weights, positions = merge_weights(attention, keys, 2)
    assert positions.tolist() == [0, 39]
    assert weights[0].tolist() == pytest.approx([1.0] + [0.01] * NEIGHBOURS + [0.0] * 7)
    assert weights[1].tolist() == pytest.approx([0.0] + [0.01] * 38 + [0.4])


def test_tokens_at_even_steps_by_hand() -> None:
    """Step 2 of five: 0 and 2 are kept whatever their attention, the last never; then the best."""
    attention = torch.tensor([0.1, 0.2, 0.05, 0.3, 0.35])
    weights, positions = merge_weights(attention, torch.eye(5), 4, plus=2)
    assert positions.tolist() == [0, 2, 3, 4]  # 3 is the best of those that are left out
    assert weights[2].tolist() == pytest.approx([0, 0.2, 0, 0.3, 0])
    assert weights[3, 4] == 1


def test_plus_needs_room() -> None:
    """No more tokens at even steps than k - 1."""
    shape = VisualShape(((4, 4),), 1)
    assert Method(tokens=6, plus=3).plan(shape) == 6  # 0, 3, 6, 9, 12
    assert Method(tokens=16, plus=1).plan(shape) == 16
    message = r"^prumerge: plus=3 keeps 5 tokens of a grid 4x4 whose share of tokens=5 is 5, and"
    with pytest.raises(PlanError, match=message):
        Method(tokens=5, plus=3).plan(shape)
    for wrong in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match=r"^plus must be a step of 1 or more, or 0 for none, "):
            Method(tokens=5, plus=wrong)  # type: ignore[arg-type]


def test_equals_reference(vectors: Any) -> None:
    """Same rows, also at the number that the IQR rule of the original finds, and PruMerge+."""
    steps = []
    for method, features, attention, keys, indices, expected in cases(vectors):
        shape = VisualShape(((1, features.shape[1]),), 1)
        assert method.plan(shape) == len(expected)
        result = method(features, flat_cls_attention=attention, flat_keys=keys, shape=shape)
        check(*(x.numpy() for x in result), indices, expected)
        steps.append(method.plus)
    assert steps == [0, 0, 0, 0, 2]


def test_onnx_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """ONNX Runtime gives the rows of the original."""
    recorded = list(cases(vectors))
    for method, features, attention, keys, indices, expected in [*recorded[:2], recorded[4]]:

        def call(x: Any, attention: Any, keys: Any, method: Any = method) -> Any:
            return method(x, flat_cls_attention=attention, flat_keys=keys)

        inputs = (features, attention, keys)
        check(*engine(trace(call, *inputs))(*inputs), indices, expected)


def test_one_row_is_the_weighted_sum() -> None:
    """K = 1 for each tile: nothing is kept, each tile is its weighted sum at its first token."""
    features = torch.arange(8.0).reshape(1, 8, 1)
    tokens, positions = Method(tokens=2)(
        features,
        flat_cls_attention=torch.full((1, 8), 0.25),
        flat_keys=torch.ones(1, 8, 2),
        shape=VisualShape(((2, 2), (2, 2)), 1),
    )
    assert positions.tolist() == [[0, 4]]
    assert tokens.flatten().tolist() == [1.5, 5.5]
