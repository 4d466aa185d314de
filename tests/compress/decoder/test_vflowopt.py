"""VFlowOpt in the language model: its counts, whose signal it reads, and refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgevlm.compress.decoder.vflowopt import Method
from edgevlm.errors import PlanError


def test_plan() -> None:
    """The released ratio at 18 of 28 layers; other stages are options."""
    assert Method().plan(196, 28) == (196,) * 18 + (118,) * 10
    assert Method(tokens="9+4", layers="1+3").plan(20, 4) == (20, 9, 9, 4)
    with pytest.raises(PlanError, match=r"^vflowopt: got tokens=\d+ for layers=\d+\+\d+,"):
        Method(tokens=9, layers="1+3").plan(20, 4)
    with pytest.raises(ValueError, match=r"^t is a multiple of the mean attention, 0 or more"):
        Method(t=-1)


def test_importance_goes_with_the_rows() -> None:
    """Rows 2, 3 and 5 are visual; the two most important stay."""
    look: Any = SimpleNamespace(rows=torch.arange(7), visual=torch.tensor([2, 3, 5]))
    look.carried = Method().carry(look, torch.tensor([0.2, 0.1, 0.3]))
    torch.testing.assert_close(look.carried, torch.tensor([0, 0, 0.2, 0.1, 0, 0.3, 0]))
    _, chosen = Method()(look, torch.zeros(1, 7, 4), 2)
    assert chosen.tolist() == [0, 2]


def test_a_bundle_of_both_sites(preset: Any, lowered_once: Any, tmp_path: Any) -> None:
    """One signal for both, so one t; PyTorch and ONNX Runtime agree."""
    pytest.importorskip("onnxscript")
    from edgevlm.recipe import Recipe

    def recipe(inside: str) -> Recipe:
        methods: Any = ("vflowopt:t=1.2", inside)
        return Recipe(model=str(preset("tiny-llava-onevision")), tokens=40, methods=methods)

    done = lowered_once(recipe("vflowopt@decoder:t=1.2"), tmp_path / "both.edgevlm")
    assert done.verification.ok
    assert [site.tokens_out for site in done.bundle.plan.sites] == [40, 24]
    with pytest.raises(PlanError, match=r"^vflowopt: got t=1.2 at site tokens and t=0 at site dec"):
        lowered_once(recipe("vflowopt@decoder"), tmp_path / "other.edgevlm")
