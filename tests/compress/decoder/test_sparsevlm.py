"""SparseVLM's raters, scores and clusters against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.decoder.sparsevlm import Method, clusters, rate, recycle
from edgevlm.errors import PlanError


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """Raters, scores, what stays, and the clusters; ONNX Runtime too."""
    for case in vectors("sparsevlm"):
        start, count = int(case["param_v_token_start"]), int(case["param_v_token_num"])
        hidden = torch.from_numpy(case["in_hidden_states"])[0]
        rows = torch.arange(hidden.shape[0])
        raters = rate(hidden[start : start + count], hidden, rows >= start + count)
        rater_indices = np.flatnonzero(raters) - start - count
        np.testing.assert_array_equal(rater_indices, np.sort(case["out_text_rater_indices"]))
        weights = torch.from_numpy(case["in_text_to_visual_attention"])[0].mean(0)
        scores = weights[rater_indices].mean(0)
        np.testing.assert_allclose(scores, case["out_score"][0], rtol=0, atol=1e-6)
        tokens = torch.from_numpy(case["in_layer_outputs"])[:, start : start + count]
        kept = int(case["out_keep_mask"].sum())

        def run(tokens: Tensor, scores: Tensor, kept: int = kept) -> tuple[Tensor, Tensor]:
            return recycle(tokens, scores, kept)

        assert clusters(count - kept)[1] == int(case["out_cluster_num"])
        stays = np.flatnonzero(case["out_keep_mask"][0])
        bound = 1e-4 * np.abs(case["out_cluster_tokens"]).max()
        for recycled, indices in (
            run(tokens, scores),
            engine(trace(run, tokens, scores))(tokens, scores),
        ):
            recycled, indices = np.asarray(recycled)[0], np.asarray(indices)
            np.testing.assert_array_equal(indices[np.isin(indices, stays)], stays)
            np.testing.assert_array_equal(recycled[:kept], tokens[0, stays].numpy())
            theirs = case["out_cluster_tokens"][0]
            np.testing.assert_allclose(recycled[kept:], theirs, rtol=0, atol=bound)


def test_without_words_there_is_no_rater() -> None:
    """And nothing is NaN: a budget measures blocks with rows of zeros."""
    hidden = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    raters = rate(hidden[1:3], hidden, torch.zeros(5, dtype=torch.bool))
    assert raters.tolist() == [0.0] * 5


def test_plans() -> None:
    """The original's stages for 192 of 576 in the mean: 300 + 9, 200 + 4 and 110 + 3 tokens."""
    counts = (*[576] * 3, *[309] * 4, *[204] * 9, *[113] * 16)
    assert Method().plan(576, 32) == counts
    assert Method().plan_whole(576, 32) == (*[576] * 3, *[300] * 4, *[200] * 9, *[110] * 16)
    # From half of the depth on 110, though two stages before it fall on one layer.
    assert Method().plan_whole(576, 6) == (576, 200, 200, 110, 110, 110)


def test_as_many_stay_as_asked() -> None:
    """Any number of tokens, where guessing it from the sum with the clusters would be off."""
    for kept in range(1, 196):
        method = Method(tokens=kept, layers=1)
        assert method.plan_whole(196, 2) == (196, kept)
        assert method.plan(196, 2) == (196, kept + (int(0.3 * (196 - kept)) + 1) // 10 + 1)
    assert Method(tokens=99, layers=1).plan(196, 2) == (196, 99 + 4)
    assert Method(tokens=196, layers=1).plan(196, 2) == (196, 196)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 65, "layers": 1}, "^sparsevlm: got 65 tokens from layer 1 on, expected 0 to"),
        ({"tokens": "9+3", "layers": 1}, r"^sparsevlm: got tokens=\d+\+\d+ for layers=1,"),
        ({"tokens": 0, "layers": 1}, "^sparsevlm: got tokens=0, expected 1 or more in each stage"),
    ],
)
def test_impossible_plans(options: dict[str, Any], message: str) -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=message):
        Method(**options).plan(64, 4)
