"""VFlowOpt's recycling and importance against their references, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.tokens.vflowopt import Method, cells_of, recycle
from edgevlm.errors import PlanError
from edgevlm.graphs.signals import global_rows
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """Two cells of 1 x 2, K = 3: token 1 stays; 0 is alone in its cell, 2 and 3 become a mean."""
    features = torch.tensor([[[1.0], [2.0], [3.0], [7.0]]])
    importance = torch.tensor([[0.1, 0.6, 0.05, 0.15]])
    kept, positions = Method(tokens=3, cell=2)(
        features, global_attention=importance, shape=VisualShape(((1, 4),), 1)
    )
    assert positions.tolist() == [[0, 1, 3]]
    torch.testing.assert_close(kept, torch.tensor([[[1.0], [2.0], [6.0]]]))


def test_cells() -> None:
    """Sides need not be integers; each grid has cells of its own."""
    shape = VisualShape(((2, 3), (1, 2)), 8)
    assert cells_of(shape, 1.5) == [0, 0, 1, 0, 0, 1, 2, 2]
    assert cells_of(shape, 9) == [0] * 6 + [1] * 2


def test_recycling_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """The same rows at the original's number of tokens; ONNX Runtime too."""
    for case in vectors("vflowopt_recycle"):
        local = int(case["param_local_h"]), int(case["param_local_w"])
        cells = cells_of(VisualShape(((27, 27), local), 32), float(case["param_grid_a"]))
        kept = len(case["out_tokens"])

        def run(
            features: Tensor, importance: Tensor, cells: list[int] = cells, kept: int = kept
        ) -> tuple[Tensor, Tensor]:
            weights, positions = recycle(importance, cells, kept)
            return weights @ features, positions

        given = [torch.from_numpy(case[f"in_{name}"]) for name in ("features", "importance")]
        bound = {"rtol": 0, "atol": 1e-4 * np.abs(case["out_tokens"]).max()}
        for tokens, positions in (run(*given), engine(trace(run, *given))(*given)):
            np.testing.assert_array_equal(positions, np.flatnonzero(case["out_keep_mask"]))
            np.testing.assert_allclose(tokens, case["out_tokens"], **bound)


def test_importance_equals_reference(vectors: Any) -> None:
    """The original's without its entropy, whose weight is 0 in all released settings."""
    for case in vectors("vflowopt_importance"):
        attention = torch.from_numpy(case["in_attention"]).mean(1)
        found = global_rows(attention, float(case["param_t"]))[0]
        entropy = torch.from_numpy(case["out_entropy"]).softmax(0)
        expected = case["out_importance"] - float(case["param_alpha_v"]) * entropy.numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.max())


def test_a_still_importance_gives_k_rows() -> None:
    """Equal importance everywhere, and cells that end up empty: still K distinct positions."""
    for kept in (4, 5, 40, 63):
        weights, positions = recycle(torch.zeros(64), cells_of(VisualShape(((8, 8),), 1), 4), kept)
        assert len(set(positions.tolist())) == kept
        torch.testing.assert_close(weights.sum(1), torch.ones(kept))


def test_refusals() -> None:
    """More cells than tokens, and a cell below one token."""
    with pytest.raises(PlanError, match=r"^vflowopt: cell=2 makes 16 cells and 9 tokens are kept"):
        Method(tokens=9, cell=2).plan(VisualShape(((8, 8),), 16))
    with pytest.raises(ValueError, match=r"^cell is the side of a cell in tokens, at least 1"):
        Method(tokens=9, cell=0.5)
