"""The command that we add to optimum-cli, in this process, from this tree.

As a process of its own it is in cli/test_options.py; that optimum finds an installed edgevlm is in
test_packaging.py.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

from edgevlm.bundle.files import Bundle
from edgevlm.quantization.schemes import Schemes
from edgevlm.recipe import MethodChoice

pytest.importorskip("optimum.commands.optimum_cli")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def here(monkeypatch):
    """Run `optimum-cli` in this process: its exit code."""
    import optimum.commands
    from optimum.commands.optimum_cli import main

    name = "optimum.commands.register"
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(ROOT / "edgevlm" / "_optimum")]
    package = importlib.util.module_from_spec(spec)

    def run(*arguments):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, package)
            patch.setattr(optimum.commands, "register", package, raising=False)
            patch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
            try:
                main()
            except SystemExit as end:
                return end.code
        return 0

    return run


def test_exports_a_bundle(here, capsys, tiny_model, tmp_path):
    out = tmp_path / "tiny.edgevlm"
    asked = ("--model", tiny_model, "--target", "onnx", "--tokens", 16, "--method", "divprune")
    asked += ("--context", 128, "--tiles", "1x1", "--size", "128x128", "--block-size", "64MB")
    asked += ("--chunk", 32, "--quantize", "head=fp16", "--speculate", 4)
    code = here("export", "edgevlm", *asked, out)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out == f"{out}\n"
    recipe = Bundle.open(out).plan.recipe
    assert (recipe.tokens, recipe.methods) == (16, (MethodChoice("divprune"),))
    assert (recipe.context, recipe.chunk, recipe.speculate) == (128, 32, 4)
    assert recipe.quantize == Schemes("none", (("head", "fp16"),))
    assert (recipe.tiles, recipe.block_size_bytes) == ((1, 1), 64_000_000)
    assert recipe.size == (128, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tiles", "2x"), "edgevlm: tiles must look like ROWSxCOLUMNS"),
        (("--block-size", "big"), "edgevlm: a size looks like 64MB"),
        (("--tokens", "0"), "edgevlm: tokens must be at least 1, got 0"),
        (("--quantize", "=x"), "edgevlm: quantize looks like SCHEME"),
        (("--method", "a b"), "edgevlm: a method looks like NAME[@SITE]"),
    ],
)
def test_a_mistake_is_one_line(here, capsys, tmp_path, arguments, message):
    assert here("export", "edgevlm", *arguments, tmp_path / "tiny.edgevlm") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not list(tmp_path.iterdir())


def test_wrong_usage_names_the_options(here, capsys):
    assert here("export", "edgevlm", "--tokens", "many") == 2
    assert "--block-size SIZE" in capsys.readouterr().err
