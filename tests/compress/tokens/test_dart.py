"""DART against its reference and by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.tokens.dart import Method, take_dissimilar
from edgevlm.graphs.selection import descending, marked, unit_rows


def directions(*degrees: float) -> torch.Tensor:
    """Unit vectors f32 [1, n, 2]."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], 1)[None]


def test_by_hand() -> None:
    """Pivots are tokens 4 (norm 5) and 1 (norm 4); 4 takes the furthest from 90 degrees, then 1.

    From 90 degrees tokens 0, 2, 3, 5 are 90, 170, 80 and 30 away: token 2. Of the rest, from 10
    degrees, tokens 0, 3, 5 are 10, 0 and 50 away: token 5.
    """
    features = directions(0, 10, 260, 10, 90, 60)
    keys = torch.tensor([[1.0, 0], [-4, 0], [0, 1], [1, 1], [2, -3], [0, 0]])[None]
    kept, positions = Method(tokens=4, pivots=2)(features, flat_keys=keys)
    assert positions.tolist() == [[1, 2, 4, 5]]
    assert torch.equal(kept[0], features[0, [1, 2, 4, 5]])


def test_first_pivots_take_more() -> None:
    """K = 5 of two pivots: the first takes two tokens, the second one."""
    features = directions(0, 90, 200, 190, 300, 310)
    keys = torch.tensor([[9.0], [8], [0], [0], [0], [0]])[None]
    _, positions = Method(tokens=5, pivots=2)(features, flat_keys=keys)
    assert positions.tolist() == [[0, 1, 2, 3, 4]]


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """Same pivots by norm; with the original's order of pivots the same tokens, in ONNX too."""
    for case in vectors("dart_lightcompress"):
        start, total = (
            int(case["param_vision_token_start_index"]),
            int(case["param_vision_token_length"]),
        )
        keys = torch.from_numpy(case["in_keys"][0]).transpose(0, 1).flatten(1)  # [L, H * D]
        image = descending(keys[start : start + total].abs().sum(1)) + start
        pivots = case["out_image_pivots"]
        assert sorted(image[: len(pivots)].tolist()) == sorted(pivots)

        rows = unit_rows(torch.from_numpy(case["in_last_layer_state"][0]))
        order = torch.from_numpy(case["out_pivot_processing_order"])
        cosine = rows[order] @ rows[start : start + total].T
        taken = marked(torch.from_numpy(pivots) - start, total)
        counts = [int(case["out_tokens_per_pivot"])] * len(order)
        found = take_dissimilar(cosine, taken, counts)
        expected = case["out_retained_sorted"] - start
        assert found.nonzero().flatten().tolist() == expected.tolist()
        program = trace(partial(take_dissimilar, counts=counts), cosine, taken)
        (in_onnx,) = engine(program)(cosine, taken)
        np.testing.assert_array_equal(in_onnx, found.numpy())


@pytest.mark.parametrize("tokens", [1, 5, 8, 9, 40])
def test_fewer_tokens_than_pivots(tokens: int, features: torch.Tensor) -> None:
    """Eight pivots at most; the largest keys are always kept."""
    keys = features[:, :, :4]
    _, positions = Method(tokens=tokens)(features, flat_keys=keys)
    first = descending(keys[0].abs().sum(1))[: min(8, tokens)]
    assert set(first.tolist()) <= set(positions[0].tolist())


def test_wrong_pivots() -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=r"pivots is the number of pivot tokens, .* got 0"):
        Method(tokens=4, pivots=0)
