"""SparseVLM's raters, scores and clusters against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgevlm.compress.decoder.sparsevlm import clusters, rate, recycle


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
            own = np.isin(indices, stays)
            np.testing.assert_array_equal(indices[own], stays)
            np.testing.assert_array_equal(recycled[own], tokens[0, stays].numpy())
            ours = recycled[~own][np.lexsort(recycled[~own].T)]
            theirs = case["out_cluster_tokens"][0]
            theirs = theirs[np.lexsort(theirs.T)]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)
