"""AIM's importance against the reference, and its plan."""

from __future__ import annotations

from typing import Any

import numpy as np
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
    """Visual tokens that each of 28 layers sees, and of four: later stages of one layer win."""
    assert Method().plan(64, 28) == (*[64] * 14, *[48] * 2, *[32] * 2, *[16] * 3, *[0] * 7)
    assert Method().plan(64, 4) == (64, 64, 16, 0)
