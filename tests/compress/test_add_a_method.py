"""The example of docs/add-a-method.md does what the page says, as one file in the folder."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import edgevlm.compress
from edgevlm.pipeline import export
from edgevlm.recipe import Recipe
from edgevlm.registry import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture
def longest(tmp_path, monkeypatch):
    """The page's file in a folder that is part of the package for this test."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code
    (tmp_path / "longest.py").write_text(code[1])
    monkeypatch.setattr(edgevlm.compress, "__path__", [*edgevlm.compress.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield "longest"
    sys.modules.pop("edgevlm.compress.longest", None)


def test_the_example_is_found_exported_and_verified(longest, preset, tmp_path):
    assert longest in METHODS.names()
    recipe = Recipe(model=str(preset("tiny-smolvlm")), tokens=12, methods=(longest,))
    done = export(recipe, tmp_path / "longest.edgevlm")
    assert done.bundle.plan.host.visual_tokens == 12
    assert done.verification.ok
