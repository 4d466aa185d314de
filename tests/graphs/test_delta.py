"""The gated delta rule in chunks and row by row, against its recurrence and transformers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevlm.graphs.recurrent.delta import (  # noqa: E402
    GatedDelta,
    delta_chunks,
    delta_masks,
    delta_row,
    unit_inverse,
)
from edgevlm.graphs.trace import check  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402

# Of float32 against float64, as much as substituting row by row loses.
EXACT = 1e-6
LIMIT = 1e-5
HEADS, KEYS, VALUES = 3, 16, 24
# What two keys have in common, and how much of the state a row keeps.
KINDS = {
    "random": (0.0, 0.9),
    "alike": (0.9, 0.99),
    "equal": (1.0, 1.0),
    "forgetful": (0.5, 1e-9),
    "mixed": (0.999, None),
}


def rows_of(kind, rows, seed=0):
    """Unit queries and keys, values, decays and strengths of HEADS heads, and a state."""
    generator = torch.Generator().manual_seed(seed)
    common, kept = KINDS[kind]

    def numbers(*shape):
        return torch.randn(*shape, generator=generator)

    def units(*shape):
        return torch.nn.functional.normalize(numbers(*shape), dim=-1)

    key = common * units(1, HEADS, KEYS) + (1 - common) * units(rows, HEADS, KEYS)
    key = torch.nn.functional.normalize(key, dim=-1)
    decay = torch.full((rows, HEADS, 1), kept or 1.0).log()
    if kept is None:  # from all that was there to nothing
        decay = -torch.exp(3 * numbers(rows, HEADS, 1))
    strength = torch.sigmoid(2 + numbers(rows, HEADS, 1))
    value, state = numbers(rows, HEADS, VALUES), numbers(HEADS, KEYS, VALUES)
    return units(rows, HEADS, KEYS), key, value, decay, strength, state


def recurrence(query, key, value, decay, strength, state):
    """Equation (1) of the module, in float64."""
    *rows, state = (x.double() for x in (query, key, value, decay, strength, state))
    outputs = []
    for q, k, v, g, b in zip(*rows, strict=True):  # [H, D] each
        state = state * g[:, None].exp()
        new = (v - torch.einsum("hk,hkv->hv", k, state)) * b
        state = state + k[:, :, None] * new[:, None]
        outputs.append(torch.einsum("hk,hkv->hv", q, state))
    return torch.stack(outputs), state


@pytest.mark.parametrize("rows", [2, 13, 64, 65, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_as_exact_as_the_recurrence_whatever_the_keys(kind, rows):
    given = rows_of(kind, rows)
    made, expected = delta_chunks(*given, delta_masks()), recurrence(*given)
    for ours, theirs in zip(made, expected, strict=True):
        assert difference(ours.double(), theirs)[0] <= EXACT


def test_the_usual_product_would_not_be():
    """The check can fail: (I + A)(I + A^2)(I + A^4)... of the same keys."""
    _, key, _, _, strength, _ = (x.transpose(0, 1) for x in rows_of("equal", 64))
    system = -(strength * key) @ key.transpose(1, 2) * delta_masks()[2]
    expected = torch.linalg.inv((torch.eye(64) - system).double())
    same, _, _, *pairs = delta_masks().split(1)
    assert difference(unit_inverse(system, same, pairs).double(), expected)[0] <= EXACT
    doubled, power = torch.eye(64) + system, system
    for _ in range(5):
        power = power @ power
        doubled = doubled + doubled @ power
    assert difference(doubled.double(), expected)[0] > 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_row_by_row_equals_the_recurrence(kind):
    *given, state = rows_of(kind, 40)
    outputs, expected = [], recurrence(*given, state)
    for index in range(40):
        out, state = delta_row(*(x[index : index + 1] for x in given), state)
        outputs.append(out)
    assert difference(torch.cat(outputs).double(), expected[0])[0] <= EXACT
    assert difference(state.double(), expected[1])[0] <= EXACT


@pytest.fixture(scope="module", params=[(4, 2), (3, 3)], ids=["grouped", "alike"])
def mixers(request):
    """transformers' module with seeded weights, and ours over it; heads of values and of keys."""
    values, keys = request.param
    config = transformers.AutoConfig.for_model(
        "qwen3_5_text", hidden_size=48, num_hidden_layers=1, linear_num_key_heads=keys,
        linear_num_value_heads=values, linear_key_head_dim=16, linear_value_head_dim=24,
    )  # fmt: skip
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    mixer, generator = Qwen3_5GatedDeltaNet(config, 0).eval(), torch.Generator().manual_seed(0)
    for name, weight in mixer.named_parameters():
        std = 1.0 if weight.dim() == 1 else 2 / weight[0].numel() ** 0.5
        weight.data = std * torch.randn(weight.shape, generator=generator)
        if name == "norm.weight":
            weight.data += 1
    return SimpleNamespace(config=config, own=mixer, ours=GatedDelta(mixer).requires_grad_(False))


def zeros(mixers):
    """The states of no rows."""
    own = mixers.own
    past = torch.zeros(1, own.conv_kernel_size - 1, own.conv_dim)
    return past, torch.zeros(1, own.num_v_heads, own.head_k_dim, own.head_v_dim)


@torch.no_grad()
def test_the_module_in_chunks_filled_up_and_single_rows_equals_transformers(mixers):
    x, outputs, states = torch.randn(1, 150, 48), [], zeros(mixers)
    calls = [(0, 70, 70), (70, 50, 70), (120, 13, 16), (133, 0, 16), (133, 15, 16), (148, 1, 1),
             (149, 1, 1)]  # fmt: skip
    for first, count, rows in calls:  # what fills a call up is no zero
        filled = torch.cat((x[:, first : first + count], 9 * torch.randn(1, rows - count, 48)), 1)
        number = None if rows == 1 else torch.tensor([count], dtype=torch.int32)
        out, *states = mixers.ours(filled, *states, number)
        outputs.append(out[:, :count])
    cache = transformers.DynamicCache(config=mixers.config)
    whole = mixers.own(x, cache=cache)
    assert difference(torch.cat(outputs, 1), whole)[0] <= LIMIT
    assert difference(states[1], cache.get_recurrent_state(0, state_idx=0))[0] <= LIMIT
    past = cache.get_conv_state(0, state_idx=0).transpose(1, 2)[:, -3:]
    assert difference(states[0], past)[0] <= LIMIT


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 16, 256])
def test_its_graph_has_no_loop_over_rows_and_breaks_no_rule(mixers, rows):
    states = zeros(mixers)
    number = () if rows == 1 else (torch.tensor([rows], dtype=torch.int32),)
    given = (torch.zeros(1, rows, 48), *states, *number)
    program = torch.export.export(mixers.ours, given, strict=False)
    check(program, "delta")
    nodes = sum(node.op == "call_function" for node in program.graph.nodes)
    assert nodes < 230  # transformers' own form unrolls 63 rows: 924 for one chunk
