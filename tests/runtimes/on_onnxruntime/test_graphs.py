"""Graphs that no export writes are refused before a session opens them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
pytest.importorskip("google.protobuf")

import onnx_ir as ir

from edgevlm.errors import RuntimeLoadError
from edgevlm.runtimes.on_onnxruntime.engine import Engine
from edgevlm.runtimes.on_onnxruntime.graphs import check_graph


def saved(tmp_path, nodes, initializers=(), functions=()):
    x = ir.val("x", ir.DataType.FLOAT, [1])
    graph = ir.Graph(
        [x],
        [nodes[-1].outputs[0]],
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": 21},
    )
    path = tmp_path / "block-0.run.onnx"
    model = ir.Model(graph, ir_version=10, functions=functions)
    path.write_bytes(ir.to_proto(model).SerializeToString())
    return path


def constant(name, numbers):
    tensor = ir.tensor(np.array(numbers, np.int64), name=name)
    return ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape(tensor.shape),
        type=ir.TensorType(ir.DataType.INT64),
    )


def test_exported_graphs_pass(exported):
    bundle = exported.bundle
    for block in bundle.plan.blocks:
        files = {entry.path.rsplit("/", 1)[-1] for entry in bundle.weights_of(block)}
        for path in bundle.files_of(block).values():
            check_graph(path, files)
        if files:
            with pytest.raises(RuntimeLoadError, match="which the manifest does not list"):
                check_graph(path, ())


@pytest.mark.parametrize(
    ("domain", "operator"),
    [("", "ConstantOfShape"), ("", "NonZero"), ("", "RandomNormal"), ("evil", "Add")],
)
def test_an_operator_that_no_export_writes(tmp_path, domain, operator):
    path = saved(tmp_path, [ir.node(operator, [None], domain=domain)])
    with pytest.raises(RuntimeLoadError, match=f"has the operator '{operator}'.*no export"):
        check_graph(path, ())


def test_a_graph_inside(tmp_path):
    inner = ir.Graph([], [], nodes=[ir.node("Identity", [None])], name="inner")
    node = ir.node("Identity", [None], attributes={"body": inner})
    with pytest.raises(RuntimeLoadError, match="a graph inside of 'Identity'"):
        check_graph(saved(tmp_path, [node]), ())


@pytest.mark.parametrize(("operator", "inside"), [("Expand", True), ("Tile", False)])
def test_a_size_that_fills_memory(tmp_path, operator, inside):
    numbers = [2**15, 2**14]
    if inside:
        size = constant("size", numbers)
        nodes, initializers = [ir.node(operator, [None, size])], [size]
    else:
        value = ir.tensor(np.array(numbers, np.int64))
        first = ir.node("Constant", [], attributes={"value": value})
        nodes, initializers = [first, ir.node(operator, [None, first.outputs[0]])], []
    path = saved(tmp_path, nodes, initializers)
    with pytest.raises(RuntimeLoadError, match=rf"'{operator}' to a size of '\[32768, 16384\]'"):
        check_graph(path, ())


def test_the_engine_checks_before_it_opens(exported, monkeypatch):
    def refuse(path, files):
        raise RuntimeLoadError(f"checked {path.name}")

    monkeypatch.setattr("edgevlm.runtimes.on_onnxruntime.graphs.check_graph", refuse)
    monkeypatch.setattr("edgevlm.runtimes.on_onnxruntime.graphs._CHECKED", set())
    for mode in ("private", "shared_graph"):
        with pytest.raises(RuntimeLoadError, match=r"checked vision-0\.encode"):
            Engine(exported.bundle, 1).load("vision-0", "encode", mode)
