"""The engine over saved graphs: hostile ones, signatures, memory, what is missing."""

from __future__ import annotations

import importlib.util
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("openvino") is None:  # imported without its telemetry alone
    pytest.skip("openvino is not installed", allow_module_level=True)

from edgevlm.bundle.functions import Block, Function, Tensor
from edgevlm.errors import RuntimeLoadError
from edgevlm.runtimes.on_openvino.engine import Engine
from edgevlm.runtimes.on_openvino.library import import_openvino

SIZE = 2048
RUN = Function(
    "run", (Tensor("x", "f32", (1, SIZE)),), (Tensor("y", "f32", (1, SIZE)),), file="a-0.run.xml"
)


@pytest.fixture
def engine(tmp_path) -> Any:
    """An engine over x times a matrix of 16 MB, which doubles x."""
    ov = import_openvino()
    op = ov.opset13
    x = op.parameter([1, SIZE], np.float32, name="x")
    matrix = op.constant(2 * np.eye(SIZE, dtype=np.float32))
    result = op.result(op.matmul(x, matrix, False, True), name="y")
    result.set_friendly_name("y")
    ov.serialize(ov.Model([result], [x], "m"), tmp_path / "a-0.run.xml", tmp_path / "a-0.weights")
    text = (tmp_path / "a-0.run.xml").read_text().partition("?>")[2]
    (tmp_path / "a-0.run.xml").write_text(text)
    planned = Block("a-0", "a", (0, 1), 0, (RUN,))
    recipe = SimpleNamespace(scheme=lambda _: "none")
    bundle: Any = SimpleNamespace(
        path=tmp_path,
        plan=SimpleNamespace(block=lambda _: planned, recipe=recipe),
        files_of=lambda _: {"run": tmp_path / "a-0.run.xml"},
        weights_of=lambda _: [SimpleNamespace(path="a-0.weights")],
    )
    return Engine(bundle, threads=1)


def test_runs_over_the_hosts_arrays(engine):
    arrays = {"x": np.arange(SIZE, dtype=np.float32)[None], "y": np.zeros((1, SIZE), np.float32)}
    engine.load("a-0")
    engine.bind("a-0", "run", arrays)
    for _ in range(2):
        arrays["x"] += 1
        engine.run("a-0", "run")
        np.testing.assert_array_equal(arrays["y"], 2 * arrays["x"])


def test_unloading_frees_what_the_plugin_packed(engine):
    def private() -> int:
        with open("/proc/self/smaps_rollup") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("Private"))

    arrays = {t.name: np.zeros(t.shape, np.float32) for t in (*RUN.inputs, *RUN.outputs)}
    engine.bind("a-0", "run", arrays)
    engine.load("a-0")
    engine.run("a-0", "run")
    loaded = private()
    engine.unload("a-0")
    assert loaded - private() >= 0.9 * SIZE * SIZE * 4 / 1024


HOSTILE = {
    "an entity": ("<net", '<!DOCTYPE net [<!ENTITY a "b">]><net', "it has a declaration"),
    "an operator of a library": ('version="opset1"', 'version="extension"', "of 'extension'"),
    "an operator that draws": ('type="MatMul"', 'type="RandomUniform"', "'RandomUniform'"),
    "a loop": ('type="MatMul"', 'type="Loop"', "'Loop'"),
    "no graph": ("<net", "<nat", "graph"),
    "another root": ("net", "not", "not one list"),
    "weights beyond the file": ('offset="0"', 'offset="64"', "bytes at 64 of"),
    "a negative place": ('offset="0"', 'offset="-64"', "a constant with"),
    "a huge place": ('offset="0"', 'offset="18446744073709551552"', "a constant with"),
    "fewer bytes than its shape": ('size="16777216"', 'size="4"', "a constant of 4 bytes"),
    "a constant of text": ('element_type="f32" shape="2048,', 'element_type="" shape="2048,', "a"),
    "a dynamic input": ('shape="1,2048"', 'shape="?,2048"', "static"),
    "another input": ('shape="1,2048"', 'shape="2,2048"', "'x' is"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_what_no_export_writes(name, engine, tmp_path):
    old, new, reason = HOSTILE[name]
    file = tmp_path / "a-0.run.xml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(RuntimeLoadError, match=f"a-0.*{re.escape(reason)}") as refused:
        engine.load("a-0")
    assert len(str(refused.value).splitlines()) == 1


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "edgevlm[openvino]" in str(Engine.unavailable())
