"""What the Python API is given is checked at its door: one line, whatever the type."""

from __future__ import annotations

import numpy as np
import pytest

import edgevlm
from edgevlm import api
from edgevlm.errors import EdgeVLMError
from edgevlm.profiling.measurements import ProfileRequest


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"threads": -2}, "threads must be at least 1, got -2"),
        ({"threads": 1.5}, "threads must be a whole number, got 1.5"),
        ({"threads": "2"}, "threads must be a whole number, got '2'"),
        ({"threads": True}, "threads must be a whole number, got True"),
        ({"memory": 0}, "memory must be at least 1, got 0"),
        ({"memory": -(10**6)}, "memory must be at least 1, got -1000000"),
        ({"memory": 3e8}, "memory must be a whole number, got 300000000.0"),
        ({"memory": "much"}, "a size looks like 64MB or 1.5GB, got 'much'"),
        ({"memory": b"300MB"}, "memory must be a whole number, got bytes"),
        ({"engine": 7}, "engine must be a text, got int"),
        ({"engine": "onnx"}, "unknown engine 'onnx'; did you mean 'onnxruntime'?"),
    ],
)
def test_options_of_load(exported, options, text):
    with pytest.raises(EdgeVLMError) as error:
        edgevlm.load(exported.bundle.path, **options)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: edgevlm.load(None), "the bundle must be a path, got NoneType"),
        (lambda: edgevlm.load(b"x.edgevlm"), "the bundle must be a path, got bytes"),
        (lambda: edgevlm.load("x\0y"), "the bundle is not the name of a file: it has a zero byte"),
        (lambda: edgevlm.load("x" * 300), f"the bundle '{'x' * 56}... cannot be used: "),
        (lambda: edgevlm.load("\ud800"), "the bundle is not the name of a file: '\\ud800'"),
        (lambda: edgevlm.export(edgevlm.Recipe(), "x" * 300), f"out '{'x' * 56}... cannot be used"),
        (lambda: edgevlm.verify("x", model=5), "model must be a text, got int"),
        (lambda: api.plan_with_cost("embedded"), "recipe must be a Recipe, got str"),
        (lambda: edgevlm.verify(7), "the bundle must be a path, got int"),
        (lambda: edgevlm.plan("embedded"), "recipe must be a Recipe, got str"),
        (lambda: edgevlm.export({"model": "embedded"}, "o"), "recipe must be a Recipe, got dict"),
        (lambda: edgevlm.export(edgevlm.Recipe(), 7), "out must be a path, got int"),
        (lambda: ProfileRequest(runs="5"), "runs must be a whole number, got '5'"),
        (lambda: ProfileRequest(runs=0), "runs must be at least 1, got 0"),
        (lambda: ProfileRequest(runs=10**7), "runs must be at most 1000000, got 10000000"),
        (lambda: ProfileRequest(tokens_generated=10**9), "tokens_generated must be at most 1677"),
        (lambda: ProfileRequest(tokens_generated=2.5), "tokens_generated must be a whole number"),
        (lambda: ProfileRequest(minutes="1"), "minutes must be a number, got '1'"),
        (lambda: ProfileRequest(minutes=float("nan")), "minutes must be from 0 to 1e+06, got nan"),
        (lambda: ProfileRequest(image=b"x"), "image must be a path, got bytes"),
        (lambda: ProfileRequest(prompt=3), "the prompt must be a text, got int"),
    ],
)
def test_other_calls(call, text):
    with pytest.raises(EdgeVLMError) as error:
        call()
    assert str(error.value).startswith(text)


def test_a_profile_without_a_function_for_progress(exported):
    with pytest.raises(EdgeVLMError, match=r"^progress must be a function, got int$"):
        edgevlm.load(exported.bundle.path, threads=1).profile(progress=5)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ("a cat", "labels must be a list of texts, got str"),
        (7, "labels must be a list of texts, got int"),
        (["a cat", 7], "labels[1] must be a text, got int"),
        (["a cat", "\ud800"], "labels[1] is not valid UTF-8"),
    ],
)
def test_labels(embedder, labels, text):
    model = edgevlm.load(embedder("tiny-clip").bundle.path, threads=1)
    with pytest.raises(EdgeVLMError) as error:
        model.classify(np.zeros((8, 8), np.uint8), labels)
    assert str(error.value) == text
