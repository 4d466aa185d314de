"""The evaluator of Core ML programs: operations against PyTorch, and damaged packages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")
pytest.importorskip("onnxscript")

from edgevlm.bundle.files import Bundle  # noqa: E402
from edgevlm.errors import BundleError, RuntimeLoadError  # noqa: E402
from edgevlm.runtimes.on_coreml_reference import ml_program  # noqa: E402
from edgevlm.runtimes.on_coreml_reference.engine import Engine, _as  # noqa: E402
from edgevlm.runtimes.on_coreml_reference.ml_operators import OPERATORS  # noqa: E402
from edgevlm.runtimes.on_coreml_reference.ml_report import static_report  # noqa: E402

X = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)
P = np.abs(X) + 0.1
I32 = np.array([2, 0], np.int32)
T, TP = torch.from_numpy(X), torch.from_numpy(P)
F = torch.nn.functional
W = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
KERNEL = np.random.default_rng(2).standard_normal((7, 3, 2, 2)).astype(np.float32)
INDICES = np.arange(96).reshape(2, 3, 4, 4).astype(np.int32) % 6
AXIS = {"axis": -1}
# Operation: inputs, and what PyTorch makes of them.
CASES = {
    "abs": ({"x": X}, T.abs()),
    "add": ({"x": X, "y": P}, T + TP),
    "argsort": ({"x": X}, T.argsort(dim=-1, descending=True, stable=True)),
    "batch_norm": (
        {"x": X, "mean": W[0, :3], "variance": P[0, 0, 0, :3], "gamma": W[1, :3],
         "beta": W[2, :3], "epsilon": 1e-3},
        F.batch_norm(
            T, *map(torch.from_numpy, (W[0, :3], P[0, 0, 0, :3], W[1, :3], W[2, :3])), eps=1e-3
        ),
    ),
    "cast": ({"x": X, "dtype": "int32"}, T.int()),
    "clip": ({"x": X, "alpha": -0.5, "beta": 0.5}, T.clamp(-0.5, 0.5)),
    "concat": ({"values": (X, P), "axis": 1}, torch.cat([T, TP], 1)),
    "conv": (
        {"x": X, "weight": KERNEL, "strides": [2, 2], "pad_type": "custom", "pad": [0, 0, 1, 1]},
        F.conv2d(F.pad(T, (1, 1)), torch.from_numpy(KERNEL), stride=2),
    ),
    "cos": ({"x": X}, T.cos()),
    "cumsum": ({"x": X, "axis": 2}, T.cumsum(2)),
    "equal": ({"x": I32, "y": I32[::-1]}, torch.tensor([False, False])),
    "erf": ({"x": X}, T.erf()),
    "exp": ({"x": X}, T.exp()),
    "expand_dims": ({"x": X, "axes": [0, 2]}, T.unsqueeze(0).unsqueeze(2)),
    "fill": ({"shape": [2, 3], "value": 4.0}, torch.full((2, 3), 4.0)),
    "floor": ({"x": X}, T.floor()),
    "floor_div": ({"x": X, "y": P}, torch.floor_divide(T, TP)),
    "gather": ({"x": X, "indices": I32, "axis": 2}, T.index_select(2, torch.tensor([2, 0]))),
    "gather_along_axis": (
        {"x": X, "indices": INDICES, "axis": 3},
        T.gather(3, torch.from_numpy(INDICES).long()),
    ),
    "gelu": ({"x": X}, F.gelu(T)),
    "greater": ({"x": X, "y": P}, T > TP),
    "greater_equal": ({"x": X, "y": X}, T >= T),
    "identity": ({"x": X}, T),
    "inverse": ({"x": P, "epsilon": 0.0}, TP.reciprocal()),
    "layer_norm": (
        {"x": X, "axes": [-1], "gamma": W[0], "beta": W[1], "epsilon": 1e-3},
        F.layer_norm(T, (6,), torch.from_numpy(W[0]), torch.from_numpy(W[1]), 1e-3),
    ),
    "less": ({"x": X, "y": P}, T < TP),
    "less_equal": ({"x": X, "y": X}, T <= T),
    "linear": (
        {"x": X, "weight": W, "bias": W[:, 0]},
        F.linear(T, torch.from_numpy(W), torch.from_numpy(W[:, 0])),
    ),
    "log": ({"x": P}, TP.log()),
    "logical_and": ({"x": X > 0, "y": X < 1}, (T > 0) & (T < 1)),
    "logical_not": ({"x": X > 0}, T <= 0),
    "logical_or": ({"x": X > 0, "y": X < -1}, (T > 0) | (T < -1)),
    "matmul": (
        {"x": X, "y": P, "transpose_x": True},
        T.transpose(2, 3) @ TP,
    ),
    "maximum": ({"x": X, "y": P}, torch.maximum(T, TP)),
    "minimum": ({"x": X, "y": P}, torch.minimum(T, TP)),
    "mod": ({"x": X, "y": P}, torch.remainder(T, TP)),
    "mul": ({"x": X, "y": P}, T * TP),
    "not_equal": ({"x": X, "y": P}, T != TP),
    "one_hot": ({"indices": I32, "one_hot_vector_size": 4}, F.one_hot(torch.tensor([2, 0]), 4)),
    "pad": ({"x": X, "pad": [1, 0, 2, 3]}, F.pad(T, (2, 3, 1, 0))),
    "pow": ({"x": P, "y": np.float32(2.5)}, TP**2.5),
    "range_1d": ({"start": 2, "end": 9, "step": 3}, torch.arange(2, 9, 3)),
    "real_div": ({"x": X, "y": P}, T / TP),
    "reduce_argmax": ({"x": X, "axis": 2, "keep_dims": False}, T.argmax(2)),
    "reduce_argmin": ({"x": X, "axis": 1}, T.argmin(1, keepdim=True)),
    "reduce_l2_norm": ({"x": X, "axes": [-1]}, T.norm(dim=-1)),
    "reduce_max": ({"x": X, "axes": [1, 2]}, T.amax((1, 2))),
    "reduce_mean": ({"x": X, "axes": [-1], "keep_dims": True}, T.mean(-1, keepdim=True)),
    "reduce_min": ({"x": X, "axes": [0]}, T.amin(0)),
    "reduce_sum": ({"x": X, "axes": [3]}, T.sum(3)),
    "relu": ({"x": X}, T.relu()),
    "reshape": ({"x": X, "shape": [0, -1, 6]}, T.reshape(2, 12, 6)),
    "rsqrt": ({"x": P}, TP.rsqrt()),
    "scaled_dot_product_attention": (
        {"query": X, "key": P, "value": X, "attn_mask": X[:1, :1, :, :4] * 2},
        F.scaled_dot_product_attention(T, TP, T, T[:1, :1, :, :4] * 2),
    ),
    "select": ({"cond": X > 0, "a": X, "b": P}, torch.where(T > 0, T, TP)),
    "sigmoid": ({"x": X * 50}, (T * 50).sigmoid()),
    "sign": ({"x": X}, T.sign()),
    "silu": ({"x": X}, F.silu(T)),
    "softplus": ({"x": X}, F.softplus(T)),
    "sin": ({"x": X}, T.sin()),
    "slice_by_index": (
        {
            "x": X,
            "begin": [0, 1, 0, 1],
            "end": [0, 3, 2, 6],
            "stride": [1, 1, 1, 2],
            "begin_mask": [True, False, False, False],
            "end_mask": [False, False, True, False],
            "squeeze_mask": [True, False, False, False],
        },
        T[0, 1:3, 0:, 1:6:2],
    ),
    "slice_by_size": ({"x": X, "begin": [0, 1, 0, 2], "size": [2, 1, -1, 3]}, T[0:2, 1:2, :, 2:5]),
    "slice_update": (
        {"x": X, "update": P[:, :, :1], "begin": [0, 0, 2, 0], "end": [2, 3, 3, 6]},
        torch.slice_scatter(T, TP[:, :, :1], 2, 2, 3),
    ),
    "softmax": ({"x": X, "axis": 1}, T.softmax(1)),
    "split": ({"x": X, "axis": 3, "split_sizes": [2, 4]}, T.split([2, 4], 3)),
    "sqrt": ({"x": P}, TP.sqrt()),
    "square": ({"x": X}, T.square()),
    "squeeze": ({"x": X[:, :1], "axes": [1]}, T[:, 0]),
    "stack": ({"values": (X, P), "axis": 1}, torch.stack([T, TP], 1)),
    "sub": ({"x": X, "y": P}, T - TP),
    "tanh": ({"x": X}, T.tanh()),
    "tile": ({"x": X, "reps": [1, 2, 1, 3]}, T.tile(1, 2, 1, 3)),
    "topk": ({"x": X, "k": 3, "axis": -1}, tuple(T.topk(3))),
    "transpose": ({"x": X, "perm": [0, 2, 3, 1]}, T.permute(0, 2, 3, 1)),
    "upsample_nearest_neighbor": (
        {"x": X, "scale_factor_height": 2.0, "scale_factor_width": 3.0},
        F.interpolate(T, scale_factor=(2.0, 3.0), mode="nearest"),
    ),
}
ELSEWHERE = {"const", "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_pytorchs(name):
    inputs, expected = CASES[name]
    given = {k: np.asarray(v) if isinstance(v, list) else v for k, v in inputs.items()}
    found = OPERATORS[name](**given)
    pairs = (
        zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    )
    for mine, theirs in pairs:
        assert mine.shape == tuple(theirs.shape)
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=2e-6)


def test_every_operation_is_tested():
    assert set(CASES) | ELSEWHERE == set(OPERATORS)


def test_gelus():
    approximate = OPERATORS["gelu"](X, "TANH_APPROXIMATION")
    np.testing.assert_allclose(approximate, F.gelu(T, approximate="tanh"), rtol=0, atol=2e-6)
    quick = OPERATORS["gelu"](X, "SIGMOID_APPROXIMATION")
    np.testing.assert_allclose(quick, T * (1.702 * T).sigmoid(), rtol=0, atol=2e-6)


def test_of_equals_the_first_wins():
    x = np.array([1.0, 3.0, 3.0, 2.0, 3.0], np.float32)
    values, indices = OPERATORS["topk"](x, 2)
    assert (values.tolist(), indices.tolist()) == ([3, 3], [1, 2])
    values, indices = OPERATORS["topk"](np.array([5, 1, 1], np.int32), 2, ascending=True)
    assert (values.tolist(), indices.tolist()) == ([1, 1], [1, 2])


def test_compressed_weights():
    data = np.arange(16, dtype=np.int8).reshape(2, 8)
    scale = np.array([[1, 10], [100, 1000]], np.float32)  # two blocks of four in each row
    found = OPERATORS["constexpr_blockwise_shift_scale"](data, scale, np.full((2, 2), 1))
    assert found[:, [0, 4]].tolist() == [[-1, 30], [700, 11000]]
    lut = np.array([[[[0.0], [10.0]]], [[[20.0], [30.0]]]], np.float32)  # one table a row
    indices = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    found = OPERATORS["constexpr_lut_to_dense"](indices, lut)
    assert found.tolist() == [[0, 10, 10], [30, 20, 20]]


def test_numbers_of_few_bits():
    assert ml_program.unpack(np.array([0x2F, 0x81], np.uint8), 4, 4, True).tolist() == [
        -1, 2, 1, -8
    ]  # fmt: skip
    assert ml_program.unpack(np.array([0b11100001], np.uint8), 2, 3, False).tolist() == [1, 4]


def test_float16_overflows_as_on_the_device():
    assert _as(np.array([1e5, 1.0002]), "fp16").tolist() == [np.inf, 1.0]


@pytest.fixture
def bundle(coreml_bundle):
    return coreml_bundle


@pytest.fixture
def copy(bundle, tmp_path):
    """A copy whose files may be changed."""
    return Path(shutil.copytree(bundle.path, tmp_path / "copy.edgevlm"))


def weights_of(folder: Path) -> Path:
    package = folder / "blocks" / "decoder" / "decoder-0.mlpackage"
    return package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def test_a_flipped_bit_is_noticed(copy):
    path = weights_of(copy)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"weight.bin' was changed: its sha256"):
        Engine(Bundle.open(copy)).load("decoder-0")


def test_a_package_that_is_cut_off_is_refused(copy):
    path = weights_of(copy)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"^'decoder-0.mlpackage' is not a complete ML program: "):
        ml_program.read_package(copy / "blocks" / "decoder" / "decoder-0.mlpackage")
    model = path.parents[1] / "model.mlmodel"
    model.write_bytes(model.read_bytes()[:5000])
    with pytest.raises(BundleError, match=r"^'decoder-0.mlpackage' is not a complete ML program: "):
        ml_program.read_package(copy / "blocks" / "decoder" / "decoder-0.mlpackage")


def test_an_unknown_operation_is_named(bundle, monkeypatch):
    monkeypatch.delitem(OPERATORS, "silu")
    with pytest.raises(RuntimeLoadError, match=r"operation 'silu' is not supported"):
        Engine(bundle).load("decoder-0")


def test_the_report_counts_what_may_leave_the_npu(bundle):
    report = {f"{r.block}.{r.function}": r for r in static_report(bundle)}
    assert set(report) == {f"{b.name}.{f.name}" for b in bundle.plan.blocks for f in b.functions}
    prefill = report["decoder-0.prefill"]
    assert prefill.fall_back == {}
    assert prefill.float32 > 50  # the scheme is float32
    assert prefill.rank <= 5
    assert prefill.largest_bytes >= 4 * bundle.plan.host.chunk * bundle.plan.host.embedding.columns


def test_the_largest_number_in_float16_is_kept(coreml_halves):
    verified = json.loads((coreml_halves.path / "measured" / "parity.json").read_text())
    largest = verified["largest_float16"]
    assert {"vision-0.encode", "decoder-0.prefill", "decoder-0.decode"} <= set(largest)
    assert all(0 < top < 65504 and kind in OPERATORS for top, kind in largest.values())
