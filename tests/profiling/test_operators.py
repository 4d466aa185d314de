"""Where operators run, and the module of each."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("onnxruntime")

from edgevlm.runtimes.on_onnxruntime import operators as on_onnxruntime


@pytest.fixture
def graph(tmp_path):
    """A function that writes a graph of nodes (name, inputs, outputs) and weights."""
    onnx = pytest.importorskip("onnx")
    helper = pytest.importorskip("onnx.helper")

    def write(nodes, weights):
        made = [helper.make_node("Add", i, o, name=name) for name, i, o in nodes]
        tensors = [helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [1.0]) for name in weights]
        path = tmp_path / "g.onnx"
        onnx.save(helper.make_model(helper.make_graph(made, "g", [], [], tensors)), path)
        return path

    return write


def test_a_node_belongs_to_its_weights_or_where_its_inputs_come_from(graph):
    up, gate = "layers.1.mlp.up.weight.transposed", "layers.1.mlp.gate.weight"
    path = graph(
        [
            ("first", ["x", "layers.0.norm.weight"], ["a"]),
            ("up", ["a", up, "layers.1.mlp.up.bias"], ["b"]),
            ("gate", ["a", gate], ["c"]),
            ("gelu", ["c"], ["d"]),
            ("product", ["b", "d"], ["e"]),
            ("sum", ["a", "e"], ["f"]),
            ("alone", ["x", "zeros"], ["g"]),
        ],
        ["layers.0.norm.weight", up, gate, "layers.1.mlp.up.bias", "zeros"],
    )
    assert on_onnxruntime.modules_of(path) == {
        "first": "layers.0.norm", "up": "layers.1.mlp.up", "gate": "layers.1.mlp.gate",
        "gelu": "layers.1.mlp", "product": "layers.1.mlp", "sum": "layers.1.mlp", "alone": "",
    }  # fmt: skip


def test_without_the_library_that_reads_graphs(exported, monkeypatch):
    import edgevlm

    model = edgevlm.load(exported.bundle.path, threads=1)
    monkeypatch.setattr(on_onnxruntime.importlib.util, "find_spec", lambda name: None)
    engine = model._loop.blocks.engine
    functions = [(b.name, f.name) for b in model.plan.blocks for f in b.functions]
    placed = on_onnxruntime.time_operators(engine, dict.fromkeys(functions, 1))
    assert {operator.module for operator in placed.operators} == {None}
    assert list(placed.not_measured) == ["operators.module"]
    assert all(operator.run_ms.n == on_onnxruntime.RUNS for operator in placed.operators)


def test_executorch_counts_what_its_backend_left(monkeypatch):
    pytest.importorskip("executorch")
    from edgevlm.bundle.kernels import Kernels, Left
    from edgevlm.runtimes.on_executorch import operators as on_executorch

    told = {
        "a.encode": Kernels(30, 2, (Left("aten.where", 3, "no"), Left("aten.topk", 1, "no"))),
        "b.decode": Kernels(12, 1, ()),
    }
    monkeypatch.setattr(on_executorch, "kernels", lambda bundle: told)
    plan = SimpleNamespace(requires=SimpleNamespace(versions=(("backend", "xnnpack"),)))
    placed = on_executorch.count_operators(
        SimpleNamespace(plan=plan), {("a", "encode"): 1, ("b", "decode"): 4}
    )
    assert placed.fallback == 4
    assert placed.placement == {"xnnpack": 42, "portable kernels": 4}
    assert placed.operators is None
    assert "operators" in placed.not_measured
