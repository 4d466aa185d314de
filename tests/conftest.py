"""Shared by all tests: own caches, tiny models, one small bundle, the command as a process."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import ONNX Runtime themselves too

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for each core; torch reads this when imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def preset(tmp_path_factory):
    """`preset("tiny-smolvlm")`: the folder of a preset of samples/make_checkpoint.py, written once.

    Nobody writes into it.
    """
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location(
        "make_checkpoint", ROOT / "samples" / "make_checkpoint.py"
    )
    sample = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sample)
    root = tmp_path_factory.mktemp("checkpoints")

    def make(name):
        path = root / name
        return path if path.exists() else sample.make_checkpoint(name, path)

    return make


@pytest.fixture(scope="session")
def tiny_model(preset):
    """What `--model` takes where any model will do: 64 visual tokens, two layers."""
    return str(preset("tiny-smolvlm"))


@pytest.fixture(scope="session")
def exported(tiny_model, tmp_path_factory):
    """A tiny model at 16 tokens, exported once per session; nobody writes into it.

    Blocks are small, so that every stage but `reduce` has several.
    """
    for module in ("onnx_ir", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    folder = tmp_path_factory.mktemp("exported")
    recipe = Recipe(model=tiny_model, tokens=16, block_size_bytes=100_000)
    return export(recipe, folder / "tiny.edgevlm")


@pytest.fixture(scope="session")
def embedder(preset, tmp_path_factory):
    """`embedder("tiny-clip")`: a tiny encoder, exported once; nobody writes into it."""
    for module in ("onnx_ir", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    folder, made = tmp_path_factory.mktemp("embedders"), {}

    def make(name):
        if name not in made:
            recipe = Recipe(model=str(preset(name)), block_size_bytes=100_000)
            made[name] = export(recipe, folder / f"{name}.edgevlm")
        return made[name]

    return make


@pytest.fixture
def bundle_copy(exported, tmp_path):
    """A copy of the session's bundle, to be damaged."""
    return Path(shutil.copytree(exported.bundle.path, tmp_path / "copy.edgevlm"))


@pytest.fixture
def edited(bundle_copy):
    """A function that changes the manifest of a copy of the bundle, and gives the copy's path."""

    def change(edit):
        path = bundle_copy / "manifest.json"
        document = json.loads(path.read_text("utf-8"))
        edit(document)
        path.write_text(json.dumps(document), "utf-8")
        return bundle_copy

    return change


@pytest.fixture(scope="session")
def tree():
    """All files of a folder: name -> contents."""

    def read(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture
def run():
    """Run a command in this process; anything but our own exit fails the test."""
    from typer.testing import CliRunner

    from edgevlm.cli import app

    def call(*arguments, stdin=None):
        result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call


@pytest.fixture(scope="session")
def start():
    """Start the `edgevlm` command as a process of its own; `before` is Python that runs first."""

    def process(*arguments, before=""):
        code = f"import sys\n{before}\nfrom edgevlm.cli import main\nmain()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
            # A test run in the background ignores Ctrl-C, and its children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return process


@pytest.fixture(scope="session")
def optimum_cli():
    """Run `optimum-cli` with the command of a tree, whatever other edgevlm is installed."""

    def run(tree, *arguments):
        program = f"""
import importlib.machinery, importlib.util, sys
import optimum.commands
name = "optimum.commands.register"
spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
spec.submodule_search_locations = [{str(tree / "edgevlm" / "_optimum")!r}]
sys.modules[name] = importlib.util.module_from_spec(spec)
from optimum.commands.optimum_cli import main
main()
"""
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)], cwd=tree,
            capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "80"},
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def command(start):
    """Run the `edgevlm` command as a process of its own to its end: exit code, stdout, stderr."""

    def run(*arguments, before=""):
        process = start(*arguments, before=before)
        out, err = process.communicate(timeout=180)
        return SimpleNamespace(code=process.returncode, out=out, err=err)

    return run
