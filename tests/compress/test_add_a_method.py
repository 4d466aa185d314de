"""The example of docs/add-a-method.md does what the page says, as one file in a site's folder."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import edgevlm.compress.tokens
from edgevlm.recipe import Recipe
from edgevlm.registry import METHODS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-a-method.md"


@pytest.fixture
def example():
    """The page's method file."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code
    return code[1]


@pytest.fixture
def longest(example, tmp_path, monkeypatch):
    """The file in a folder that is part of the site's package for this test."""
    (tmp_path / "longest.py").write_text(example)
    tokens = edgevlm.compress.tokens
    monkeypatch.setattr(tokens, "__path__", [*tokens.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield "longest"
    sys.modules.pop("edgevlm.compress.tokens.longest", None)


def test_the_example_is_found_exported_and_verified(longest, preset, lowered_once, tmp_path):
    assert longest in METHODS.names("tokens")
    assert METHODS.sites_of(longest) == ["tokens"]
    recipe = Recipe(model=str(preset("tiny-smolvlm")), tokens=12, methods=(longest,))
    done = lowered_once(recipe, tmp_path / "longest.edgevlm")
    assert done.bundle.plan.host.visual_tokens == 12
    assert done.verification.ok


@pytest.fixture
def copy(copied_tree, tmp_path, commands_of):
    """A copy of the package, and a function that runs commands of it: their JSON."""
    copied_tree(tmp_path)

    def run(*commands):
        done = commands_of(tmp_path, *commands)
        assert all(code == 0 for code, _, _ in done), done
        return [json.loads(out.splitlines()[-1]) for _, out, _ in done]

    return tmp_path / "edgevlm", run


def test_a_file_in_the_tree_is_all_that_the_command_line_needs(example, copy):
    package, run = copy
    (package / "compress" / "tokens" / "longest.py").write_text(example)
    planned = ["plan", "embedded", "--tokens", "8", "--method", "longest", "--json"]
    rows, plan = run(["methods", "--json"], planned)
    (row,) = [row for row in rows if row["name"] == "longest"]
    assert row["site"] == "tokens"
    assert row["summary"] == "keeps the K longest tokens"
    (site,) = plan["sites"]
    assert (site["method"], site["tokens_out"]) == ("longest", 8)


def test_a_new_site_is_a_new_folder(example, copy):
    """A method is listed at a site that no code names; without a site the known one is meant."""
    package, run = copy
    for site in ("tokens", "input"):
        (package / "compress" / site).mkdir(exist_ok=True)
        (package / "compress" / site / "__init__.py").touch()
        (package / "compress" / site / "longest.py").write_text(example)
    (rows,) = run(["methods", "--json"])
    assert [row["site"] for row in rows if row["name"] == "longest"] == ["tokens", "input"]
