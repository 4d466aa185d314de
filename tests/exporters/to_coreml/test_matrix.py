"""Core ML: every scheme with every method of site `tokens`, and one each of the other sites (slow).

Packages of one model and scheme share the graphs of all blocks but `reduce`, so a case takes ten
seconds; each is verified against its thresholds, and those are held to what is promised.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("coremltools")
pytest.importorskip("onnxscript")

from edgevlm.errors import PlanError
from edgevlm.exporters.to_coreml.target import TARGET
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.pipeline import export
from edgevlm.recipe import Recipe
from edgevlm.registry import METHODS

MODELS = ("tiny-smolvlm", "tiny-llava-onevision", "embedded")
NAMES = METHODS.names("tokens")
INSIDE = {"tome@vision:r=4": "vision", "fastv:layer=1": "decoder"}
LEAST_DB = {"fp16": 55, "w8a16": 40, "w4g32a16": 20, "p4": 20, "p6": 20}


@pytest.fixture(scope="module")
def graphs() -> dict[Any, dict[Any, Any]]:
    """Graphs by model and scheme."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", TARGET.schemes)
@pytest.mark.parametrize("method", [*NAMES, *INSIDE])
def test_every_scheme_with_every_method(model, scheme, method, graphs, preset, tmp_path):
    folder = model if model == "embedded" else str(preset(model))
    tokens = None if method == "identity" else 24
    shared = {} if method in INSIDE else graphs.setdefault((model, scheme), {})
    recipe = Recipe(folder, None, "coreml", tokens, (method,), scheme)
    try:
        done = export(recipe, tmp_path / "m.edgevlm", graphs=shared)
    except PlanError as reason:
        if method in INSIDE or _alone(method):
            raise
        pytest.skip(str(reason))
    parity = done.verification
    assert parity.ok
    for block in parity.blocks:
        stage = block.name.rpartition("-")[0]
        if scheme == "none" or stage == "reduce":
            assert block.rel_error <= 1e-3, block
        elif block.half_psnr_db is not None:  # merges hang on rounding in PyTorch's float16 too
            assert block.psnr_db >= min(LEAST_DB[scheme], block.half_psnr_db - 3), block
        else:
            assert block.psnr_db is None or block.psnr_db >= LEAST_DB[scheme], block
    assert INSIDE.get(method, "tokens") in [site.site for site in done.bundle.plan.sites]


def _alone(method: str) -> bool:
    """Whether a method can work on one view."""
    try:
        METHODS.load(method, "tokens").Method(tokens=24).plan(VisualShape(((8, 8),), 64))
    except PlanError:
        return False
    return True
