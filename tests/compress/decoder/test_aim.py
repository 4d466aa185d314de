"""AIM's importance against the reference, and its plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.decoder.aim import Method, importance
from edgevlm.graphs.selection import largest_indices


def test_importance_equals_reference(vectors: Any) -> None:
    """PageRank over a layer's attention, and the visual tokens that stay."""
    for case in vectors("aim_importance"):
        logits = torch.from_numpy(case["in_attn_logits"])[0]
        total = logits.shape[1]
        scores = importance(logits, torch.ones(total))
        expected = case["out_importance"][0]
        start, count = int(case["param_visual_start"]), int(case["param_visual_len"])
        visual = slice(start, start + count)
        bound = 1e-4 * expected[visual].max()
        np.testing.assert_allclose(scores[visual], expected[visual], rtol=0, atol=bound)
        mask = case["out_keep_mask"][0]
        kept = largest_indices(scores[visual], int(mask[visual].sum()))
        np.testing.assert_array_equal(kept, np.flatnonzero(mask[visual]))


def test_plans() -> None:
    """The original's 28 layers: the first that sees fewer is 15, none is left from 22 on."""
    eighths = (56, 48, 40, 32, 24, 16, 8)
    assert Method().plan(64, 28) == (*[64] * 15, *eighths, *[0] * 6)
    assert sum(Method().plan(64, 28)[14:22]) == 0.5625 * 8 * 64


@pytest.mark.parametrize("layers", [1, 2, 4, 6, 24, 32])
def test_other_depths_see_as_much_in_the_mean(layers: int) -> None:
    """The original's mean over all layers is 18.5 of 28."""
    counts = Method().plan(2800, layers)
    assert counts[0] == 2800
    assert list(counts) == sorted(counts, reverse=True)
    if layers > 1:  # the first layer sees all
        assert abs(sum(counts) / layers - 2800 * 18.5 / 28) < 1
