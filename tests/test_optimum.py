"""The command that we add to optimum-cli, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from edgevlm.bundle.files import Bundle

pytest.importorskip("optimum.commands.optimum_cli")
pytest.importorskip("onnxscript")
try:
    metadata.distribution("edgevlm")
except metadata.PackageNotFoundError:
    pytest.skip("optimum finds an installed edgevlm only", allow_module_level=True)


def optimum_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`optimum-cli export edgevlm` with `arguments`."""
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "edgevlm"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_exports_a_bundle(tiny_model, tmp_path):
    out = tmp_path / "tiny.edgevlm"
    done = optimum_cli(
        "--model",
        tiny_model,
        "--target",
        "onnx",
        "--tokens",
        16,
        "--method",
        "divprune",
        "--context",
        128,
        "--tiles",
        "1x1",
        "--block-size",
        "64MB",
        "--chunk",
        32,
        out,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    recipe = Bundle.open(out).plan.recipe
    assert (recipe.tokens, recipe.methods) == (16, ("divprune",))
    assert (recipe.context, recipe.chunk) == (128, 32)
    assert (recipe.tiles, recipe.block_size_bytes) == ((1, 1), 64_000_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tiles", "2x"), "edgevlm: tiles must look like ROWSxCOLUMNS"),
        (("--block-size", "big"), "edgevlm: a size looks like 64MB"),
        (("--tokens", "0"), "edgevlm: tokens must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, message):
    done = optimum_cli(*arguments, tmp_path / "tiny.edgevlm")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_usage_names_the_options():
    done = optimum_cli("--tokens", "many")
    assert done.returncode == 2
    assert "--block-size SIZE" in done.stderr
