"""A target and an engine of one file each, laid into a copy of the tree: found, ranked, asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from edgevlm.quantization.schemes import threshold

TARGET = '''
"""What a new target says: a summary, schemes, and how a block is written."""

from dataclasses import replace

from edgevlm.bundle.plan import Requires
from edgevlm.exporters.contract import Target


def lower(programs, block, options):
    """Nothing is shared by the blocks of a signature."""
    return options


def write(lowered, block, tensors, folder, shared):
    """The names of its weights."""
    file = folder / f"{block.name}.toy"
    file.write_text("\\n".join(sorted(tensors)), "utf-8")
    return tuple(replace(f, file=file.name) for f in block.functions)


TARGET = Target(
    summary="names of weights",
    schemes=("none", "w6g64a8"),  # a scheme that nothing else names
    requires=Requires((("toy", "1"),)),
    weight_suffixes=(".toy",),
    lower=lower,
    write=write,
)
'''
ENGINE = '''
"""What a new engine says: a name, targets, a rank, and how functions come, run and go."""

import numpy as np

from edgevlm.runtimes import engine
from edgevlm.runtimes.inspection import Inspection


class Engine(engine.Engine):
    """Runs nothing; owns the arrays that the first block of each stage gives."""

    name, targets, rank = "toy", ("toy", "onnx"), 30

    @classmethod
    def summary(cls):
        return "nothing at all"

    @classmethod
    def inspect(cls, bundle, pictures, prompt):
        return Inspection({"toys": len(bundle.plan.blocks)})

    def buffers(self, block, function):
        planned = self.bundle.plan.block(block).function(function)
        if not block.endswith("-0"):
            return {}
        owned = self.__dict__.setdefault("owned", {})
        return owned.setdefault((block, function), {t.name: t.zeros() for t in planned.results})

    def load(self, block, function=None, mode="private"):
        pass

    def run(self, block, function):
        pass

    def unload(self, block, function=None):
        pass
'''
ASK = """
import json
from edgevlm.exporters.contract import find_target
from edgevlm.bundle.plan import FileEntry
from edgevlm.registry import engine_for
from edgevlm.runtimes.loading import load_loop
loop = load_loop({bundle!r})
engine = loop.blocks.engine
files = [FileEntry("a.toy", 2, ""), FileEntry("table.bin", 3, ""), FileEntry("a.json", 5, "")]
toy = find_target("toy")
print(json.dumps(dict(
    engine=engine.name, chosen=engine_for("toy"), other=engine_for("executorch"),
    owned=all(engine.arrays[key][name] is array
              for key, arrays in engine.owned.items() if key in engine.arrays
              for name, array in arrays.items()),
    stages=sorted(block for block, _ in engine.owned),
    bytes=toy.weights_bytes(files), kv=[toy.kv_form, toy.kv_dtype],
    sizes=[toy.matrix_bytes(3, 5, "none", "decoder"), toy.number_bytes("none")],
)))
"""


@pytest.fixture(scope="module")
def tree(copied_tree, tmp_path_factory) -> Path:
    """A copy of the tree with a target and an engine more."""
    folder = copied_tree(tmp_path_factory.mktemp("tree"))
    (folder / "exporters" / "to_toy").mkdir()
    (folder / "exporters" / "to_toy" / "__init__.py").touch()
    (folder / "exporters" / "to_toy" / "target.py").write_text(TARGET, "utf-8")
    (folder / "runtimes" / "on_toy.py").write_text(ENGINE, "utf-8")
    return folder


@pytest.fixture
def python(tree, commands_of):
    """Stdout of a program that imports that copy."""

    def run(program, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def edgevlm(*commands):
        done = commands_of(tree, *[[*command, "--json"] for command in commands])
        assert all(code == 0 for code, _, _ in done), done
        return [json.loads(out.splitlines()[-1]) for _, out, _ in done]

    return run, edgevlm


def test_commands_list_it_and_plan_for_it(python, exported, tiny_model):
    _, edgevlm = python
    asked = ["plan", tiny_model, "--target", "toy", "--tokens", "16"]
    asked += ["--quantize", "w6g64a8,head=none"]
    opened = exported.bundle
    targets, engines, seen, planned = edgevlm(
        ["targets"], ["engines"], ["inspect", opened.path], asked
    )
    found = {row["name"]: row for row in targets}
    assert found["toy"] == {
        "name": "toy",
        "summary": "names of weights",
        "schemes": ["none", "w6g64a8"],
    }
    assert {"onnx", "toy"} <= set(found)
    found = {row["name"]: row for row in engines}
    assert found["toy"]["targets"] == ["toy", "onnx"]
    assert (found["toy"]["available"], found["toy"]["summary"]) == (True, "nothing at all")
    assert seen["toys"] == len(opened.plan.blocks)
    assert planned["visual_tokens"] == 16


def test_the_highest_rank_runs_a_bundle_and_defaults_are_stated_once(python, exported):
    run, _ = python
    found = json.loads(run(ASK.format(bundle=str(exported.bundle.path))).splitlines()[-1])
    assert (found["engine"], found["chosen"]) == ("toy", "toy")
    assert found["other"] != "toy"
    assert found["owned"]
    assert {"vision-0", "reduce-0", "decoder-0"} <= set(found["stages"])
    assert found["bytes"] == 5
    assert found["kv"] == ["shared_buffer", "f32"]
    assert found["sizes"] == [60, 4]


def test_a_scheme_that_only_the_target_names_has_its_threshold():
    assert threshold("w6g64a8").psnr_db == threshold("w4g32a8").psnr_db
    assert threshold("w8g64a16").psnr_db == threshold("w8a16").psnr_db
