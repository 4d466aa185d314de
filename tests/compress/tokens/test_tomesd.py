"""ToMe for Stable Diffusion against its reference, by hand, and its cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.tokens.tomesd import Method, match_cells
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """One cell of 2 x 2: tokens 1 and 3 point as token 0 does and merge into it, 2 stays."""
    features = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [6.0, 0.0]]])
    kept, positions = Method(tokens=2)(features)
    assert kept.tolist() == [[[3.0, 0.0], [0.0, 1.0]]]
    assert positions.tolist() == [[0, 2]]


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """Rows, membership and unmerging; ONNX Runtime too."""
    for case in vectors("tomesd"):
        grid = int(case["param_h"]), int(case["param_w"])
        cell = int(case["param_sy"]), int(case["param_sx"])

        def merged(
            metric: Tensor,
            grid: tuple[int, int] = grid,
            cell: tuple[int, int] = cell,
            r: int = int(case["param_r"]),
        ) -> tuple[Tensor, ...]:
            made = []
            for x in metric:
                matching = match_cells(x, grid, cell, r)
                rows, _ = matching.merge(x, torch.ones(x.shape[0], 1))
                source = matching.remaining.unsqueeze(1) == matching.target
                made.append((rows, source, rows.index_select(0, matching.output_index())))
            return tuple(torch.stack(parts) for parts in zip(*made, strict=True))

        metric = torch.from_numpy(case["in_metric"])
        for found in (merged(metric), engine(trace(merged, metric))(metric)):
            x, source, unmerged = (np.asarray(part) for part in found)
            np.testing.assert_array_equal(source, case["out_source"])
            np.testing.assert_allclose(x, case["out_x"], rtol=0, atol=1e-5)
            np.testing.assert_allclose(unmerged, case["out_unmerged"], rtol=0, atol=1e-5)


def test_each_cell_keeps_a_token(features: Tensor) -> None:
    """20 of 64 tokens: cells of 2 x 2 are 16, and the first token of each is kept."""
    _, positions = Method(tokens=20)(features)
    first = {8 * row + column for row in range(0, 8, 2) for column in range(0, 8, 2)}
    assert first <= set(positions[0].tolist())
    _, positions = Method(tokens=9)(features)  # cells of 3 x 3
    assert {0, 3, 24, 27} < set(positions[0].tolist())


def test_wrong_side() -> None:
    """Refused when the method is made, or planned for a grid with more cells than tokens."""
    with pytest.raises(ValueError, match=r"^side is that of a cell in tokens, at least 2, got 1$"):
        Method(tokens=4, side=1)
    message = r"^tomesd: side=2 makes 16 cells of a grid 8x8 that keeps 9 tokens; take a larger"
    with pytest.raises(PlanError, match=message):
        Method(tokens=9, side=2).plan(VisualShape(((8, 8),), 16))
    with pytest.raises(PlanError, match=r"^tomesd: no cell of side 3 fits a grid 2x9; keep more"):
        Method(tokens=3).plan(VisualShape(((2, 9),), 16))
