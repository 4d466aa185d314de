"""A block in an engine beside PyTorch: which inputs each gets, and what is compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.bundle.functions import Block, Function, Tensor  # noqa: E402
from edgevlm.parity.calls import OpenBlock  # noqa: E402
from edgevlm.parity.compare import Comparator  # noqa: E402


def f32(name, *shape):
    return Tensor(name, "f32", shape)


SUM = Function("f", (f32("x", 2), f32("unread", 2), f32("past_key_0", 2)),
               (f32("y", 2), f32("present_key_0", 2)), 0)  # fmt: skip


class Sum(torch.nn.Module):
    """y = x + cache; the cache becomes x."""

    def forward(self, x, unread, past):
        return x + past, x


class SumEngine:
    """The same in numpy; `log` is what it was asked for."""

    def __init__(self):
        self.log, self.arrays = [], {}

    def bind(self, block, function, arrays):
        self.arrays = arrays
        self.log.append(f"bind {block}.{function}")

    def run(self, block, function):
        self.log.append("run")
        self.arrays["y"][:] = self.arrays["x"] + self.arrays["past_key_0"]
        self.arrays["present_key_0"][:] = self.arrays["x"]

    def sync(self, block):
        self.log.append("sync")


@pytest.fixture
def opened():
    """The artifact's function lacks the input that nothing reads."""
    own = replace(SUM, inputs=(SUM.inputs[0], SUM.inputs[2]), file="f.onnx")
    return OpenBlock(SumEngine(), Block("b", "s", (0, 1), 0, (own,)), Sum(), Comparator())


def test_each_side_gets_its_own_inputs(opened):
    """The engine those of its graph, PyTorch all; a cache is one array under both its names."""
    x = np.array([1, 2], np.float32)
    cache = np.array([10, 20], np.float32)
    values = {"x": x, "unread": x, "another": x}
    caches = {"past_key_0": cache, "present_key_0": cache}
    expected = opened.expected(SUM, values | {"past_key_0": cache.copy()})
    actual = opened.run(SUM, values, caches)
    assert set(opened.engine.arrays) == {"x", "past_key_0", "present_key_0", "y"}
    assert opened.engine.arrays["past_key_0"] is opened.engine.arrays["present_key_0"] is cache
    assert opened.engine.log == ["bind b.f", "run", "sync"]
    assert list(actual) == ["y"]
    assert actual["y"].tolist() == expected["y"].tolist() == [11, 22]
    assert cache.tolist() == expected["present_key_0"].tolist() == [1, 2]


def test_calls_are_compared_under_the_blocks_name(opened):
    opened.compare(SUM, {"y": np.array([1.0, 3.0])}, {"y": np.array([1.0, 2.0])})
    assert opened.comparator.rel_error("b", "f") == 0.5


def test_an_input_of_the_graph_that_nobody_made_is_an_error(opened):
    with pytest.raises(KeyError, match="x"):
        opened.run(SUM, {"unread": np.zeros(2, np.float32)})
