"""Tables of torch: read once, the same graph, and torch is as it was."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch._export import utils  # noqa: E402
from torch.onnx._internal.exporter import _registration  # noqa: E402

from edgevlm.exporters.to_onnx import torchlib  # noqa: E402


def convert(function, opset=21, optimize=False):
    class Calls(torch.nn.Module):
        def forward(self, x):
            return function(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Calls(), (torch.zeros(1, 4, 8),), strict=False)
        made = torch.onnx.export(
            program, dynamo=True, opset_version=opset, verbose=False, optimize=optimize
        )
    proto = made.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # where in Python it was called
    return proto.SerializeToString(deterministic=True)


def rows(x):
    return torch.nn.functional.gelu(x).softmax(-1).index_select(1, torch.tensor([2, 0]))


def test_graphs_are_the_same_and_tables_are_read_once(monkeypatch):
    listed = []
    listing = utils._materialize_cpp_cia_ops
    monkeypatch.setattr(utils, "_materialize_cpp_cia_ops", lambda: (listed.append(1), listing())[1])
    read = []
    real = _registration.onnxscript_apis.get_torchlib_ops
    monkeypatch.setattr(
        _registration.onnxscript_apis, "get_torchlib_ops", lambda: (read.append(1), real())[1]
    )
    torchlib._table.cache_clear()
    before = vars(_registration.ONNXRegistry)["from_torchlib"]
    with torchlib.tables_read_once():
        made = [convert(rows), convert(torch.abs), convert(rows)]
    assert len(read) == len(listed) == 1
    assert vars(_registration.ONNXRegistry)["from_torchlib"] is before
    assert made[0] == made[2] == convert(rows)
    assert (len(read), len(listed) > 10) == (2, True)  # torch's own way again


def test_rules_of_the_optimizer_change_the_same_nodes():
    """Of constants, casts, reshapes, transposes and products with a bias."""

    def many(x):
        y = x.to(torch.float32).reshape(1, 4, 8).reshape(4, 8).t().t() @ torch.ones(8, 3) + 1.0
        return y.unsqueeze(0).transpose(1, 2).transpose(1, 2).squeeze(0) * (2.0 * torch.ones(3))

    expected = convert(many, optimize=True)
    with torchlib.tables_read_once():
        assert convert(many, optimize=True) == expected
    assert len(expected) < len(convert(many))


def test_what_is_added_to_a_copy_stays_there():
    with torchlib.tables_read_once():
        first = _registration.ONNXRegistry.from_torchlib(opset_version=21)
        first.register_op(torch.ops.aten.abs.default, lambda x: x)
        second = _registration.ONNXRegistry.from_torchlib(opset_version=21)
    counts = [len(table.functions["aten::abs"]) for table in (first, second)]
    assert counts[0] == counts[1] + 1
