"""torch does once what it repeats, its graphs are the same, and it is afterwards as it was."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import _ops  # noqa: E402
from torch._export import utils  # noqa: E402
from torch._subclasses import fake_impls  # noqa: E402
from torch.export import exported_program  # noqa: E402
from torch.fx import config  # noqa: E402
from torch.fx.traceback import NodeSource  # noqa: E402

from edgevlm.exporters.repeats import without_repeats  # noqa: E402


class Rows(torch.nn.Module):
    def forward(self, x):
        y = torch.nn.functional.gelu(x).softmax(-1) + torch.nn.functional.silu(x)
        return torch.nn.functional.scaled_dot_product_attention(y, y, y).chunk(2, -1)


def decomposed():
    """A graph after its decomposition, with the passes that each node has seen."""
    program = torch.export.export(Rows(), (torch.zeros(1, 2, 3, 4),), strict=False)
    program = program.run_decompositions()
    nodes = program.graph.nodes
    history = [[source.pass_name for source in n.meta.get("from_node", ())] for n in nodes]
    return str(program.graph), history


def state():
    return (
        utils._materialize_cpp_cia_ops, _ops.Callable, vars(NodeSource).get("__deepcopy__"),
        exported_program._collect_all_valid_cia_ops,
        exported_program._override_composite_implicit_decomp,
        config.do_not_emit_stack_traces,
    )  # fmt: skip


def kernels(operators):
    return {operator: dict(operator.py_kernels) for operator in operators}


def test_graphs_are_the_same_and_torch_is_as_it_was():
    before, expected = state(), decomposed()
    with without_repeats():
        assert all(a is not b for a, b in zip(before, state(), strict=True))
        assert decomposed() == expected
    assert state() == before
    assert any(expected[1])


def test_operators_have_the_same_kernels_inside_and_their_own_afterwards():
    preserved = exported_program._special_op_to_preserve_cia
    decompositions = dict.fromkeys(utils._collect_all_valid_cia_ops(), preserved)
    seen, before = [], kernels(decompositions)
    for within in (torch.no_grad, without_repeats):
        with within(), exported_program._override_composite_implicit_decomp(decompositions):
            inside = kernels(decompositions)
            seen.append({
                operator: {key: getattr(f, "__qualname__", type(f)) for key, f in found.items()}
                for operator, found in inside.items()
            })  # fmt: skip
            assert fake_impls.op_implementations_dict.keys() >= decompositions.keys()
        assert kernels(decompositions) == before
        assert not fake_impls.op_implementations_dict.keys() & decompositions.keys()
    assert seen[0] == seen[1]
    assert len(decompositions) > 100


def test_an_operator_that_fails_leaves_all_as_they_were():
    operator, absent = torch.ops.aten.relu6.default, object()
    before = dict(operator.py_kernels)
    with (
        without_repeats(),
        pytest.raises(AttributeError, match="py_kernels"),
        exported_program._override_composite_implicit_decomp({operator: None, absent: None}),
    ):
        pass
    assert operator.py_kernels == before
