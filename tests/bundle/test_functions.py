from __future__ import annotations

import numpy as np
import pytest

from edgevlm.bundle.functions import DTYPES, Cache, Chain, Function, Signature, Tensor


def f32(name):
    return Tensor(name, "f32", (1, 2))


STEP = Signature(
    (f32("hidden"), f32("cos"), f32("old")),
    (f32("hidden_out"), f32("new"), f32("signal")),
    (Cache("state", "old", "new"),),
    (Chain("hidden_out", "hidden"),),
).function("step")


def test_a_function_tells_caches_from_what_is_fed_and_what_results():
    assert [tensor.name for tensor in STEP.fed] == ["hidden", "cos"]
    assert [tensor.name for tensor in STEP.results] == ["hidden_out", "signal"]
    assert list(STEP.cached()) == [(Cache("state", "old", "new"), f32("old"))]
    assert STEP.links == {"hidden_out": "hidden"}
    assert Function("plain", (f32("x"),), ()).links == {}


def test_names_decide_nothing():
    odd = Function("f", (f32("past_key_0"),), (f32("present_key_0"), f32("hidden_out")))
    assert odd.fed == odd.inputs
    assert odd.results == odd.outputs
    assert odd.links == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_have_the_shape_and_dtype(dtype):
    array = Tensor("x", dtype, (1, 3)).zeros()
    assert (array.shape, array.dtype) == ((1, 3), np.dtype(DTYPES[dtype]))
    assert not array.any()
