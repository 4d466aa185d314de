"""Attention in bytes: what it differs by, whose scales are whose, where it stays float32."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from edgevlm.bundle.functions import Block, Function, Tensor  # noqa: E402
from edgevlm.exporters.contract import TargetOptions  # noqa: E402
from edgevlm.exporters.to_onnx.target import lower, write  # noqa: E402
from edgevlm.graphs import ops  # noqa: E402
from edgevlm.graphs.trace import trace  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402

ROWS, SIZE = 400, 16


class Attention(nn.Module):
    """Queries, keys and values as they come; a bias of each key where there is one."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, query, key, value, bias=None):
        return ops.attention(query, key, value, self.heads, bias)


def attend(given, heads, scheme, folder):
    """What ONNX Runtime computes, and with which operators."""
    names = ("query", "key", "value", "bias")[: len(given)]
    inputs = tuple(Tensor(n, "f32", tuple(x.shape)) for n, x in zip(names, given, strict=True))
    function = Function("run", inputs, (Tensor("seen", "f32", tuple(given[0].shape)),), 0)
    block = Block("test-0", "vision", (0, 1), 0, (function,))
    module = Attention(heads).eval()
    lowered = lower({"run": trace(module, function, block)}, block, TargetOptions(scheme))
    (written,) = write(lowered, block, {}, folder, None)
    path = folder / written.file
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    numbers = {n: x.numpy() for n, x in zip(names, given, strict=True)}
    (found,) = session.run(None, numbers)
    kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    return found, kinds, module(*given).numpy()


def normal(*shape, seed=0):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("rows", "keys"), [(ROWS, ROWS), (2 * ROWS, ROWS // 2)])
@pytest.mark.parametrize("sharp", [0.1, 1, 4])
def test_bytes_agree_with_float32(heads, rows, keys, sharp, tmp_path):
    """Rows that look at all keys alike and rows that look at one."""
    width = heads * SIZE
    given = normal(rows, width) * sharp, normal(keys, width, seed=1), normal(keys, width, seed=2)
    found, kinds, expected = attend(given, heads, "w8a8", tmp_path)
    assert "MultiHeadAttention" not in kinds
    _, psnr_db = difference(found, expected)
    assert psnr_db >= 40


def test_windows_are_a_batch_in_float32(tmp_path):
    """Each sees itself alone; none is rounded, however many queries it has."""
    given = [
        torch.cat([normal(ROWS, 2 * SIZE, seed=3 * i + n) for i in range(2)]) for n in range(3)
    ]
    found, kinds, expected = attend(given, 2, "w8a8", tmp_path)
    assert kinds == {"MultiHeadAttention"}
    assert difference(found, expected)[0] <= 1e-5


def test_a_head_does_not_lose_by_the_numbers_of_another(tmp_path):
    """Nor a key by those of another row."""
    given = [normal(ROWS, 2 * SIZE, seed=seed) for seed in range(3)]
    alone, _, _ = attend(given, 2, "w8a8", tmp_path)
    for x in given:
        x[..., SIZE:] *= 1000
    beside, _, _ = attend(given, 2, "w8a8", tmp_path)
    assert np.array_equal(alone[..., :SIZE], beside[..., :SIZE])
    given = [normal(ROWS, SIZE, seed=seed) for seed in range(3)]
    given[0][..., 0], given[1][:, 0] = 1, torch.tensor([-1000.0] + [0.0] * (SIZE - 1))  # unseen
    found, _, expected = attend(given, 1, "w8a8", tmp_path)
    assert difference(found, expected)[1] >= 40


@pytest.mark.parametrize("scheme", ["w8a8", "none"])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_bias_of_keys_is_added(scheme, heads, tmp_path):
    given = [normal(ROWS, heads * SIZE, seed=seed) for seed in range(3)]
    bias = 4 * normal(1, 1, ROWS, seed=3)
    found, kinds, expected = attend([*given, bias], heads, scheme, tmp_path)
    assert ("MultiHeadAttention" in kinds) == (scheme == "none")
    assert difference(found, expected)[1] >= (40 if scheme == "w8a8" else 110)


@pytest.mark.parametrize(("rows", "scheme"), [(ROWS - 1, "w8a8"), (ROWS, "w4g32a8")])
def test_what_is_not_faster_in_bytes_stays_float32(rows, scheme, tmp_path):
    given = [normal(rows, SIZE, seed=seed) for seed in range(3)]
    found, kinds, expected = attend(given, 1, scheme, tmp_path)
    assert "MultiHeadAttention" in kinds
    assert difference(found, expected)[0] <= 1e-5
