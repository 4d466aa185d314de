"""FastV against the reference, its plans and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.compress.decoder.fastv import Method
from edgevlm.errors import PlanError
from edgevlm.graphs.selection import largest_indices


def test_equals_reference(vectors: Any) -> None:
    """The rows that stay, by the last row of attention, mean over heads."""
    for case in vectors("fastv"):
        start, count = int(case["param_sys_length"]), int(case["param_image_token_length"])
        weights = torch.from_numpy(case["in_last_token_attention"])[0].mean(0)
        kept = (
            largest_indices(weights[start : start + count], int(case["param_attention_rank"]))
            + start
        )
        total = weights.shape[0]
        rows = [*range(start), *kept.tolist(), *range(start + count, total)]
        np.testing.assert_array_equal(rows, case["out_keep_indices"])


def test_plans() -> None:
    """Visual tokens that each of eight layers sees."""
    assert Method().plan(64, 8) == (64, 64, *[32] * 6)
    assert Method(tokens=9, layer=7).plan(64, 8) == (*[64] * 7, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 0}, r"^fastv: got layers \[0\], expected ascending numbers from"),
        ({"layer": 4}, r"^fastv: got layers \[4\], expected ascending numbers from"),
        ({"tokens": 65}, "^fastv: got 65 tokens from layer 2 on, expected 0 to 64"),
    ],
)
def test_impossible_plans(options: dict[str, Any], message: str) -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=message):
        Method(**options).plan(64, 4)
