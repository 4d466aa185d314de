"""VisionDrop against the reference, its plans and refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.decoder.visiondrop import Method, contextual_tokens
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import LayerNumbers
from edgevlm.graphs.pruning import Look


class FixedLook(Look):
    """A layer whose rotated queries and keys are those of a case."""

    fixed: dict[str, Tensor]

    def queries(self, rows: Tensor) -> Tensor:
        return self.fixed["queries"].index_select(1, rows)

    def keys(self) -> Tensor:
        return self.fixed["keys"]


def test_equals_reference(vectors: Any) -> None:
    """Score, dominant tokens and merged ones, which are at their targets here."""
    for case in vectors("visiondrop"):
        start, count = int(case["param_image_start"]), int(case["param_image_tokens"])
        hidden = torch.from_numpy(case["in_hidden_states"])
        none: Any = None
        layer: Any = SimpleNamespace(numbers=LayerNumbers())
        look = FixedLook(layer, hidden, none, none, torch.arange(start, start + count), none)
        FixedLook.fixed = {
            name: torch.from_numpy(case[f"in_{name}_roped"]) for name in ("queries", "keys")
        }
        score = look.attention(look.visual).mean((0, 1))[look.visual]
        np.testing.assert_allclose(score, case["out_score"], rtol=0, atol=1e-6)
        dominant, contextual = int(case["param_dominant"]), int(case["param_contextual"])
        kept = dominant + contextual
        method = Method(contextual=(contextual - 0.5) / kept)
        tokens, indices = method(look, hidden, kept)
        assert np.isin(indices, case["out_dominant_indices_sorted"]).sum() == dominant
        assert indices.tolist() == sorted(set(indices.tolist()))
        bound = 1e-4 * np.abs(case["out_visual_tokens"]).max()
        np.testing.assert_allclose(tokens[0], case["out_visual_tokens"], rtol=0, atol=bound)


def test_plans() -> None:
    """Visual tokens that each layer sees."""
    assert Method().plan(48, 8) == (48, 48, 35, 35, 26, 26, 19, 19)
    assert Method().plan(48, 2) == (48, 19)
    assert Method(tokens="20+9", layers="2+3").plan(64, 5) == (64, 64, 20, 9, 9)


def test_stages_of_the_original() -> None:
    """30 + 5, 22 + 4 and 16 + 3 of 48."""
    parts = [(kept, contextual_tokens(kept, 5 / 35)) for kept in (35, 26, 19)]
    assert parts == [(35, 5), (26, 4), (19, 3)]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"tokens": "20+9", "layers": "2"}, r"tokens=20\+9 for layers=2"),
        ({"tokens": "20", "layers": "2+3"}, r"tokens=20 for layers=2\+3"),
        ({"tokens": "20"}, r"tokens=20 for layers=1\+2\+3"),
        ({"layers": "1+2+3+4"}, r"tokens=46\+34\+25 for layers=1\+2\+3\+4"),
    ],
)
def test_as_many_tokens_as_layers(options: dict[str, Any], numbers: str) -> None:
    """No number is left out or taken twice."""
    with pytest.raises(PlanError, match=f"^visiondrop: got {numbers}, expected a number"):
        Method(**options).plan(64, 5)


def test_wrong_options() -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=r"^contextual is a share, 0 to below 1, got 1"):
        Method(contextual=1)
