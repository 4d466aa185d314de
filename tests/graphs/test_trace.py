"""The check of a traced graph names what it refuses; blocks of one signature share a trace."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.export import Dim  # noqa: E402

from edgevlm.bundle.functions import Block, Function, Tensor  # noqa: E402
from edgevlm.errors import TraceError  # noqa: E402
from edgevlm.graphs.trace import BANNED, check, example, signature, trace, weights  # noqa: E402


class Calls(nn.Module):
    """A module that calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def exported(function, *inputs, dynamic=None):
    shapes = None if dynamic is None else (dynamic,)
    return torch.export.export(Calls(function), inputs, dynamic_shapes=shapes, strict=False)


def block_of(shape=(4, 3), dtype="f32", name="vision-0"):
    function = Function("encode", (Tensor("x", dtype, shape),), (Tensor("y", dtype, shape),), 0)
    return Block(name, "vision", (0, 1), 0, (function,))


def indices(x):
    return torch.arange(3)


REFUSED = {
    "sort": lambda x: x.sort().values,
    "argsort": lambda x: x.argsort(stable=True),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "scatter": lambda x: x.scatter(0, x.long(), x),
    "unique": lambda x: torch.unique(x),
    "isin": lambda x: torch.isin(x, x),
    "cdist": lambda x: torch.cdist(x, x),
    "index_put": lambda x: x.index_put((indices(x),), torch.ones(3, 3)),
    "bucketize": lambda x: torch.bucketize(x, torch.arange(3.0)),
    "randperm": lambda x: x.index_select(0, torch.randperm(4)),
    "item": lambda x: x * x.sum().item(),
}
# torch.export itself refuses these, or writes another operator; the others reach our check.
EARLIER = ("item", "nonzero", "unique", "masked_select")


@pytest.mark.parametrize("name", REFUSED)
def test_a_banned_operator_is_refused_by_name(name):
    with pytest.raises(TraceError, match=r"^vision-0\.encode") as caught:
        trace(Calls(REFUSED[name]).eval(), block_of().functions[0], block_of())
    line = str(caught.value)
    assert "\n" not in line


@pytest.mark.parametrize("name", [n for n in REFUSED if n not in EARLIER])
def test_the_message_names_function_and_operator(name):
    program = exported(REFUSED[name], torch.ones(4, 3))
    with pytest.raises(TraceError, match=rf"^decoder-3\.prefill: operator '_?{name}.*' breaks"):
        check(program, "decoder-3.prefill")


def test_a_loop_in_the_graph_is_refused():
    from torch._higher_order_ops.while_loop import while_loop

    def count(x):
        return while_loop(lambda x: x.sum() < 9, lambda x: (x + 1,), (x,))[0]

    with pytest.raises(TraceError, match=r"^a\.b: operator 'while_loop' breaks a target"):
        check(exported(count, torch.zeros(2)), "a.b")


def test_every_banned_operator_is_tried():
    assert {*REFUSED, "while_loop", "local_scalar_dense"} == set(BANNED)


VARIANTS = {
    "scatter_reduce": lambda x: x.scatter_reduce(0, x.long(), x, "sum"),
    "scatter_add": lambda x: x.scatter_add(0, x.long(), x),
    "unique_consecutive": lambda x: torch.unique_consecutive(x),
    "index_put_": lambda x: x.clone().index_put_((indices(x),), torch.ones(3, 3)),
    "_cdist_forward": lambda x: torch.ops.aten._cdist_forward(x, x, 2.0, None),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_a_banned_operator_is_refused(name):
    with pytest.raises(TraceError, match=rf"^a\.b: operator '{name}' breaks a target"):
        check(exported(VARIANTS[name], torch.ones(4, 3)), "a.b")


def test_an_operator_whose_name_only_begins_alike_passes():
    check(exported(lambda x: torch.isinf(x), torch.ones(4)), "a.b")


def test_indexing_by_a_mask_is_refused():
    with pytest.raises(TraceError, match=r"^a\.b: operator 'index' by a mask breaks a target"):
        check(exported(lambda x: x[x > 0], torch.ones(4)), "a.b")


def test_indexing_by_numbers_passes():
    check(exported(lambda x: x[indices(x)], torch.ones(4, 3)), "a.b")


def test_a_symbolic_dimension_is_refused():
    program = exported(lambda x: x + 1, torch.ones(4, 3), dynamic=({0: Dim("n")},))
    with pytest.raises(TraceError, match=r"^a\.b: '\w+' (has a symbolic shape|is a symbolic)"):
        check(program, "a.b")


@pytest.mark.parametrize(("dimensions", "taken"), [(5, True), (6, False)])
def test_five_dimensions_are_taken_and_no_more(dimensions, taken):
    program = exported(lambda x: x.view(4, 3, *[1] * (dimensions - 2)), torch.ones(4, 3))
    if taken:
        check(program, "a.b")
        return
    with pytest.raises(TraceError, match=r"^a\.b: 'view' has 6 dimensions"):
        check(program, "a.b")


def test_a_module_that_cannot_be_traced_is_named():
    def fail(x):
        raise ValueError("no such thing")

    with pytest.raises(TraceError, match=r"^vision-0\.encode cannot be traced: no such thing"):
        trace(Calls(fail), block_of().functions[0], block_of())


def test_good_operators_pass():
    def good(x):
        values, places = x.topk(2)
        return values, places, x.gather(1, places), x.argmax(1), torch.where(x > 0, x, 0.0)

    check(trace(Calls(good), block_of().functions[0], block_of()), "a.b")


def test_example_has_shapes_and_dtypes_of_the_function():
    (x,) = example(block_of((2, 5), "i32").functions[0])
    assert (x.shape, x.dtype) == ((2, 5), torch.int32)


def test_blocks_that_differ_in_values_share_a_signature():
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    a, b = signature(one, block_of()), signature(two, block_of(name="vision-1"))
    assert a == b
    assert hash(a) == hash(b)


@pytest.mark.parametrize(
    ("module", "block"),
    [
        (nn.Linear(3, 4), block_of()),
        (nn.Linear(3, 3, bias=False), block_of()),
        (nn.Sequential(nn.Linear(3, 3)), block_of()),
        (nn.Linear(3, 3).double(), block_of()),
        (nn.Linear(3, 3), block_of((5, 3))),
        (nn.Linear(3, 3), block_of(dtype="i32")),
    ],
    ids=["shape", "no bias", "other module", "dtype", "input", "input dtype"],
)
def test_blocks_that_differ_in_more_do_not(module, block):
    assert signature(module, block) != signature(nn.Linear(3, 3), block_of())


def test_weights_are_named_as_in_the_trace():
    module = nn.BatchNorm1d(3).eval()
    program = torch.export.export(module, (torch.ones(4, 3),), strict=False)
    named = program.graph_signature
    assert {*named.inputs_to_parameters.values(), *named.inputs_to_buffers.values()} <= {
        *weights(module)
    }
