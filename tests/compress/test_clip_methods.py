"""Methods of site `tokens` that work over the frames of a clip, in bundles and at plan time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe
from edgevlm.registry import METHODS


def over_frames(name: str) -> bool:
    """Whether a method refuses a picture because it is none."""
    try:
        METHODS.load(name, "tokens").Method(tokens=40).plan(VisualShape(((8, 8),), 16))
    except PlanError as reason:
        return "works over the frames of a clip" in str(reason)
    return False


NAMES = [name for name in METHODS.names("tokens") if over_frames(name)]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_refused_by_name(tiny_model: str, name: str) -> None:
    """Before anything is exported, tiles too."""
    for shape in ({}, {"tiles": (2, 2)}):
        recipe = Recipe(model=tiny_model, tokens=40, methods=(name,), **shape)  # type: ignore[arg-type]
        with pytest.raises(PlanError, match=f"^{name}: works over the frames of a clip, got a sti"):
            make_plan(recipe, find(tiny_model))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_groups_of_frames_agree_with_pytorch(
    preset: Any, lowered_once: Any, tmp_path: Path, name: str
) -> None:
    """Qwen2.5-VL: three groups of two frames, 24 tokens each, to half of them."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = str(preset("tiny-qwen2-5-vl"))
    recipe = Recipe(model=model, size=(112, 168), frames=6, tokens=36, methods=(name,), chunk=32)
    done = lowered_once(recipe, tmp_path / "tiny.edgevlm")
    assert done.verification.ok
    assert done.verification.kept_equal == 1.0
    assert done.verification.logits_rel_error <= 1e-3
    assert done.bundle.plan.host.visual_tokens == 36
