"""The table of docs/reliability.md is that of all variations, and none of them is a fault."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

for library in ("torch", "transformers", "onnxruntime"):
    pytest.importorskip(library)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def variations():
    spec = importlib.util.spec_from_file_location("variations", ROOT / "tests" / "variations.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_table_has_every_variation_once(variations):
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    table = page.partition(variations.BEGIN)[2].partition(variations.END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[5:]]
    assert [name for name, _ in rows] == [v.name for v in variations.VARIATIONS]
    assert {result for _, result in rows} == {"equal", "refused"}
    assert len(rows) >= 40


@pytest.mark.parametrize(
    "name",
    [
        "Qwen3 under LLaVA-OneVision",
        pytest.param("Gemma under LLaVA-NeXT", marks=pytest.mark.slow),
        pytest.param("Gemma 2 under SmolVLM", marks=pytest.mark.slow),
        pytest.param("Mistral, window of 300", marks=pytest.mark.slow),
        "SmolLM3, positions in no layer",
        pytest.param("SmolLM3 under SmolVLM", marks=pytest.mark.slow),
        pytest.param("Granite under Idefics3", marks=pytest.mark.slow),
    ],
)
def test_a_language_model_gives_the_tokens_of_transformers(variations, tmp_path, name):
    (variation,) = [v for v in variations.VARIATIONS if v.name == name]
    assert variations.outcome(variation, tmp_path) == variations.Outcome("equal")


@pytest.mark.parametrize("name", ["rope of kind dynamic", "names with module."])
def test_a_variation_is_refused_in_one_line(variations, tmp_path, name):
    (variation,) = [v for v in variations.VARIATIONS if v.name == name]
    outcome = variations.outcome(variation, tmp_path)
    assert outcome.kind == "refused"
    assert outcome.line
    assert "\n" not in outcome.line
