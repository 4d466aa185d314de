"""HoliTom's folding against the reference, and its plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgevlm.compress.decoder.holitom import Method, fold
from edgevlm.graphs.selection import largest_indices


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """The tokens that stay, each with what was folded into it; ONNX Runtime too."""
    for case in vectors("holitom_inllm"):
        start, count = int(case["param_image_start"]), int(case["param_image_len"])
        kept = round(count * (1 - float(case["param_r"])))
        hidden = torch.from_numpy(case["in_hidden_states"])
        weights = torch.from_numpy(case["in_last_token_attention"])[0].mean(0)

        def run(
            hidden: Tensor, weights: Tensor, rows: slice = slice(start, start + count),
            kept: int = kept,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            chosen = largest_indices(weights[rows], kept)
            return fold(hidden[:, rows], chosen), chosen

        expected = case["out_hidden_states"][0, start : start + kept]
        wanted = case["out_keep_indices"][start : start + kept] - start
        bound = 1e-4 * np.abs(expected).max()
        for tokens, chosen in (
            run(hidden, weights),
            engine(trace(run, hidden, weights))(hidden, weights),
        ):
            np.testing.assert_array_equal(chosen, wanted)
            np.testing.assert_allclose(np.asarray(tokens)[0], expected, rtol=0, atol=bound)


def test_plans() -> None:
    """Visual tokens that each of eight layers sees."""
    assert Method().plan(64, 8) == (*[64] * 5, 32, 32, 32)
