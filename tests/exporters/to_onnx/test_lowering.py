"""The operators of a trace replaced in its own graph: what running the graph anew would give."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from edgevlm.exporters.to_onnx.lowering import lower_operators  # noqa: E402
from edgevlm.exporters.to_onnx.operators import LOWERINGS  # noqa: E402

ROWS, TOTAL, HEADS, SIZE = 3, 8, 2, 8


class Layers(nn.Module):
    """Each operator of `LOWERINGS`, some twice; the same tensor as two inputs, an unread output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.bare, self.norm = nn.Linear(16, 16, bias=False), nn.RMSNorm(16, 1e-6)

    def forward(self, x, keys, values, mask, position, tables):
        ops = torch.ops.edgevlm
        query, key = self.first(x), self.second(x)
        turned = ops.rotary(query, tables, tables, HEADS)
        out, new_keys, new_values = ops.attention_kv(
            turned, key, self.bare(x), keys, values, mask, position, HEADS
        )
        ops.attention_kv(out, key, key, keys, values, mask, position, HEADS)
        both = ops.attention(out, key, query, HEADS) + ops.attention(out, out, out, HEADS)
        return nn.functional.silu(self.norm(both)), new_keys, new_values


def lines(program):
    """Operators with their arguments, by names that count from the first; then the results."""
    names, found = {}, []
    for node in program.graph.nodes:
        names[node] = f"%{len(names)}"
        if node.op == "call_function":
            arguments = torch.fx.map_arg((node.args, node.kwargs), names.__getitem__)
            shape = tuple(node.meta["val"].shape) if hasattr(node.meta["val"], "shape") else None
            found.append((str(node.target), repr(arguments), shape))
    specs = [spec.arg.name for spec in program.graph_signature.output_specs]
    assert specs == [node.name for node in program.graph.output_node().args[0]]
    return [*found, repr(torch.fx.map_arg(program.graph.output_node().args, names.__getitem__))]


def test_the_graph_is_that_of_a_decomposition():
    shape = (1, HEADS, TOTAL, SIZE)
    inputs = (
        torch.zeros(1, ROWS, HEADS * SIZE), torch.zeros(shape), torch.zeros(shape),
        torch.zeros(1, 1, ROWS, TOTAL), torch.zeros(1, dtype=torch.int32),
        torch.zeros(1, ROWS, SIZE),
    )  # fmt: skip
    with torch.no_grad():
        program = torch.export.export(Layers().eval(), inputs, strict=False)
    expected = program.run_decompositions(LOWERINGS)
    lower_operators(program)
    assert not {node.target for node in program.graph.nodes} & {*LOWERINGS}
    assert lines(program) == lines(expected)
