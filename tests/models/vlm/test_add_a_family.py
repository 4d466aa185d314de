"""The example of docs/add-a-family.md does what the page says, as one file of the catalogue."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import edgevlm.models.vlm  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.pipeline import export  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.registry import FAMILIES  # noqa: E402

PAGE = Path(__file__).parents[3] / "docs" / "add-a-family.md"


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The page's family file in a folder that is part of the catalogue for this test."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert code
    (tmp_path / "deepseek_vl.py").write_text(code[1], "utf-8")
    catalogue = edgevlm.models.vlm
    monkeypatch.setattr(catalogue, "__path__", [*catalogue.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield "deepseek_vl"
    sys.modules.pop("edgevlm.models.vlm.deepseek_vl", None)


def test_the_example_is_found_exported_and_verified(added, preset, tmp_path):
    """With a method that reads the encoder's attention, which the generic path cannot give."""
    assert added in FAMILIES.names()
    folder = str(preset("tiny-deepseek-vl"))
    recipe = Recipe(model=folder, tokens=16, methods=("visionzip",))
    done = export(recipe, tmp_path / "tiny.edgevlm")
    plan = done.bundle.plan
    assert done.verification.ok
    assert (plan.source.family, plan.host.visual_tokens) == (added, 16)
    assert plan.host.encoder.tokens == (64, 64, 64)


def test_its_encoder_and_prompt_are_those_of_transformers(
    added, tiny, processor, prompt, photo, decoder_difference
):
    made = tiny("tiny-deepseek-vl", chunk=32)  # not that of the generic path
    pixels = made.views(photo(56, 56))
    assert difference(made.features(pixels), made.reference_features(pixels))[0] <= 1e-5
    assert decoder_difference(made) <= 1e-5
    folder = made.planned.checkpoint.folder
    inputs = prompt.inputs(processor(folder), "Why?", [photo(56, 56)])
    token = made.model.config.image_token_id
    assert prompt(made).ids("Why?", 1, token) == inputs.input_ids[0].tolist()


def test_the_entry_of_the_page_is_one_of_the_tests():
    """The line that the page gives for test_families.py runs there."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("families", Path(__file__).with_name("test_families.py"))
    families = module_from_spec(spec)
    sys.modules[spec.name] = families
    spec.loader.exec_module(families)
    del sys.modules[spec.name]
    (entry,) = re.findall(r'`("deepseek_vl": .*?)`', PAGE.read_text("utf-8"))
    assert eval(f"{{{entry}}}", vars(families))["deepseek_vl"].preset == "tiny-deepseek-vl"
