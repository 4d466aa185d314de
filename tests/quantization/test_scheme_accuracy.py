"""What schemes cost in right answers on the embedded model, on every target that runs here."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from edgevlm.errors import RuntimeLoadError
from edgevlm.evaluation.answerers import answerer
from edgevlm.evaluation.evaluate import evaluate, find_dataset
from edgevlm.exporters.contract import find_target
from edgevlm.pipeline import export
from edgevlm.recipe import Recipe
from edgevlm.registry import TARGETS

SCENES, TOKENS = 150, 98
POINTS = {"w4": 3.0, "p4": 3.0, "p6": 3.0}  # of others 1


def right(folder, target, scheme):
    """Share of right answers of the embedded model, in per cent."""
    pictures = "64" if scheme in find_target(target).calibrated else None
    recipe = Recipe(tokens=TOKENS, target=target, quantize=scheme, calibrate=pictures)
    done = export(recipe, folder / f"{target}-{scheme}.edgevlm")
    asked = find_dataset("embedded").examples(1, SCENES)
    found = evaluate(answerer(str(done.bundle.path)), asked, "embedded", "embedded")
    assert found.n > 400
    return 100 * found.accuracy


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return right(tmp_path_factory.mktemp("exact"), "onnx", "none")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS.names())
def test_no_scheme_costs_more_than_its_points(target, exact, tmp_path):
    try:
        schemes = find_target(target).schemes
    except RuntimeLoadError as missing:
        pytest.skip(str(missing))
    found = {scheme: right(tmp_path, target, scheme) for scheme in schemes}
    short = {s: v for s, v in found.items() if v < exact - POINTS.get(s[:2], 1.0)}
    assert not short, f"float32 on ONNX has {exact}, {target}: {found}"
