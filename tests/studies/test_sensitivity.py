"""What schemes cost each block, and the mixture for a size."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from edgevlm.cli import app
from edgevlm.errors import PlanError
from edgevlm.exporters.to_onnx import target as to_onnx
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.quantization.schemes import Schemes
from edgevlm.recipe import Recipe
from edgevlm.studies import sensitivity
from edgevlm.studies.sensitivity import EXACT_DB, Sensitivity, measure

BYTES = {
    "vision": {"none": 400, "w8": 100, "w4": 50},
    "decoder": {"none": 800, "w8": 200, "w4": 100},
    "head": {"none": 200, "w8": 50, "w4": 25},
}
DB = {
    "vision": {"none": EXACT_DB, "w8": 45.0, "w4": 18.0},
    "decoder": {"none": EXACT_DB, "w8": 40.0, "w4": 25.0},
    "head": {"none": EXACT_DB, "w8": 55.0, "w4": 30.0},
}


@pytest.mark.parametrize(
    ("size", "quantize", "total", "worst"),
    [
        (10_000, "none", 1400, EXACT_DB),
        (1399, "none,head=w8", 1250, 55.0),  # the head costs least
        (260, "w8,decoder=w4", 250, 25.0),
        (400, "w8", 350, 40.0),
    ],
)
def test_the_worst_stage_decides(size, quantize, total, worst):
    found = Sensitivity((), BYTES, DB).propose(size)
    assert (found.quantize, found.bytes, found.psnr_db) == (quantize, total, worst)


def test_what_is_too_small_is_refused_with_the_least():
    with pytest.raises(PlanError, match="no mixture of schemes takes 100 bytes; the least is 175"):
        Sensitivity((), BYTES, DB).propose(100)


def test_the_command_measures_and_proposes_what_fits(with_layers, lowered_once, monkeypatch):
    tiny_model = str(with_layers("tiny-smolvlm", 1))
    monkeypatch.setattr(sensitivity, "export", lowered_once)
    few = replace(to_onnx.TARGET, schemes=("none", "w8a8", "w4g32a32"))
    monkeypatch.setattr(to_onnx, "TARGET", few)
    arguments = ["plan", tiny_model, "--tokens", "16", "--method", "strided", "--sensitivity"]
    done = CliRunner().invoke(app, [*arguments, "--weights", "400kB", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    by = {(c["block"], c["scheme"]): c for c in found["costs"]}
    assert len(by) == 3 * 3
    assert by["vision-0", "w8a8"]["psnr_db"] > by["vision-0", "w4g32a32"]["psnr_db"] > 15
    assert by["vision-0", "w8a8"]["bytes"] > by["vision-0", "w4g32a32"]["bytes"]
    for scheme, size in found["bytes"].items():
        recipe = Recipe(model=tiny_model, tokens=16, methods=("strided",), quantize=scheme)
        assert make_plan(recipe, find(tiny_model)).plan.weights_bytes == size
    proposal = found["proposal"]
    recipe = Recipe(model=tiny_model, tokens=16, methods=("strided",))
    mixed = Recipe(**{**vars(recipe), "quantize": proposal["quantize"]})
    assert make_plan(mixed, find(tiny_model)).plan.weights_bytes == proposal["bytes"] <= 400_000


def test_a_size_alone_chooses_nothing():
    done = CliRunner().invoke(app, ["plan", "embedded", "--weights", "1MB"])
    assert done.exit_code == 1
    assert "--weights needs --sensitivity" in done.output


def test_an_encoder_has_its_own_stages(preset, lowered_once, monkeypatch):
    """The table has a scheme of its own, so the mixture names it beside the text encoder's."""
    monkeypatch.setattr(sensitivity, "export", lowered_once)
    few = replace(to_onnx.TARGET, schemes=("none", "w8a8"))
    monkeypatch.setattr(to_onnx, "TARGET", few)
    recipe = Recipe(model=str(preset("tiny-clip")))
    found = measure(recipe, lambda _: None)
    assert {loss.stage for loss in found.losses} == {"vision", "text"}
    sizes = found.stage_bytes
    for scheme in ("none", "w8a8"):
        total = sum(sizes[stage][scheme] for stage in sizes)
        plan = make_plan(replace(recipe, quantize=Schemes(scheme)), find(recipe.model)).plan
        assert plan.weights_bytes == total
    for size in (sizes["vision"]["none"] + sizes["text"]["w8a8"], 10**9):
        proposal = found.propose(size)
        mixed = Recipe(model=recipe.model, quantize=proposal.quantize)
        assert make_plan(mixed, find(recipe.model)).plan.weights_bytes == proposal.bytes <= size
    assert found.propose(size).quantize == "none"


def test_a_table_with_its_own_scheme_is_named():
    sizes = {"vision": {"none": 400, "w8": 100}, "text": {"none": 200, "w8": 50}}
    exact = {"vision": {"none": EXACT_DB, "w8": 40.0}, "text": {"none": EXACT_DB, "w8": 50.0}}
    found = Sensitivity((), sizes, exact, embed=True)
    assert found.propose(450).quantize == "none,text=w8,embed=w8"
    assert replace(found, embed=False).propose(450).quantize == "none,text=w8"
    assert found.propose(300).quantize == "w8,text=none,embed=none"
