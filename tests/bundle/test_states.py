from __future__ import annotations

from dataclasses import replace

import pytest

from edgevlm.bundle.functions import Block, Cache
from edgevlm.bundle.kinds import vlm
from edgevlm.bundle.kinds.shared import states
from edgevlm.bundle.kinds.shared.states import LayerState, RecurrentSpec, States
from edgevlm.errors import BundleError

WINDOW = LayerState("rows", ((1, 2, 32, 8),) * 2, "f32")
FULL = LayerState("rows", ((1, 1, 32, 16),) * 2, "f16")
MEMORY = LayerState("recurrent", ((1, 24, 2), (1, 4, 6, 6)), "f32")
READER = replace(FULL, source=1)
ALL = States.made("shared_buffer", 32, (WINDOW, FULL, MEMORY, WINDOW, READER))


def test_equal_states_stand_once():
    assert ALL.kinds == (WINDOW, FULL, MEMORY, READER)
    assert ALL.layers == (0, 1, 2, 0, 3)
    assert ALL.each == (WINDOW, FULL, MEMORY, WINDOW, READER)
    states.check(ALL)


def test_bytes_are_those_of_each_layers_own_arrays():
    rows = 2 * 32 * (2 * 8)
    assert [state.bytes for state in ALL.each] == [rows * 4, rows * 2, 192 * 4, rows * 4, 0]
    assert ALL.bytes == sum(state.bytes for state in ALL.each)
    assert ALL.row_bytes == 2 * (2 * 16 * 4) + 2 * 16 * 2
    assert not ALL.exact


def test_another_context_changes_rows_alone():
    assert WINDOW.with_rows(5).shapes == ((1, 2, 5, 8),) * 2
    assert MEMORY.with_rows(5) == MEMORY


def test_functions_have_the_arrays_of_their_layers(exported):
    host = replace(
        exported.bundle.plan.host,
        states=States.made("shared_buffer", 32, (WINDOW, FULL, MEMORY)),
        layer_ropes=(0, 0, 0),
    )
    block = Block("decoder-1", "decoder", (1, 3), 0, ())
    signature = vlm.signature(host, block, "decode")
    names = ["key_0", "value_0", "recurrent_1_0", "recurrent_1_1"]
    assert signature.caches == tuple(Cache(n, f"past_{n}", f"present_{n}") for n in names)
    shapes = [FULL.shapes[0], FULL.shapes[1], *MEMORY.shapes]
    assert [tensor.shape for tensor in signature.inputs[-4:]] == shapes
    assert [tensor.shape for tensor in signature.outputs[-4:]] == shapes


def test_a_models_own_states_are_what_is_kept_in_float16(exported):
    """The others are plain inputs and outputs, called the same."""
    reader = replace(WINDOW, source=0)
    kept = States.made("states", 32, (WINDOW, FULL, MEMORY, reader))
    host = replace(exported.bundle.plan.host, states=kept, layer_ropes=(0,) * 4)
    function = vlm.signature(host, Block("decoder-0", "decoder", (0, 4), 0, ()), "decode")
    names = [cache.name for cache in function.caches]
    assert names == ["", "", "key_1", "value_1", "", "", "", ""]
    made = function.function("decode")
    caches = {tensor.name for tensor in made.passed_in} & {c.input for c in function.caches}
    assert caches == {
        "past_key_0", "past_value_0", "past_recurrent_2_0", "past_recurrent_2_1", "past_key_3",
        "past_value_3",
    }  # fmt: skip


def test_what_each_token_changes_is_kept_in_float32():
    assert RecurrentSpec(MEMORY.shapes).state(32, "f16") == MEMORY
    message = r"host.states.kinds\[0\].dtype is f16, expected f32 of what each token"
    with pytest.raises(BundleError, match=message):
        states.check(States.made("states", 32, (replace(MEMORY, dtype="f16"),)))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((WINDOW, READER), "layer 1 has the source 1, expected its like"),
        ((WINDOW, replace(READER, source=0)), "layer 1 has the source 0, expected its like"),
        ((FULL, replace(FULL, source=-1)), "layer 1 has the source -1, expected its like"),
        ((FULL, replace(READER, source=0), READER), "layer 2 has the source 1, expected its like"),
        ((MEMORY, replace(MEMORY, source=0)), "layer 1 has the source 0, expected its like"),
    ],
)
def test_a_source_is_an_earlier_layer_with_such_rows_of_its_own(layers, message):
    with pytest.raises(BundleError, match=message):
        states.check(States.made("shared_buffer", 32, layers))
