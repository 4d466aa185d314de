"""Operations of ML programs in numpy, as Apple's documentation defines them.

A function takes the operation's inputs by name, arrays or Python strings, and returns one array or
a tuple. The caller rounds float16 results after each operation. Names, defaults and rules:
coremltools 9.0, converters/mil/mil/ops/defs (iOS15 to iOS18).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.on_coreml_reference.ml_shapes import (
    CASTS,
    concat,
    cumsum,
    expand_dims,
    gather,
    gather_along_axis,
    one_hot,
    pad,
    reshape,
    slice_by_index,
    slice_by_size,
    slice_update,
    split,
    squeeze,
    topk,
)


def erf(x: Array) -> Array:
    """The error function, float64 inside."""
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), x.dtype)


def gelu(x: Array, mode: str = "EXACT") -> Array:
    """x Phi(x), or its approximations by tanh and by a sigmoid."""
    if mode == "TANH_APPROXIMATION":
        cubic = math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)
        return 0.5 * x * (1 + np.tanh(cubic))
    if mode == "SIGMOID_APPROXIMATION":
        return x * sigmoid(1.702 * x)
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def silu(x: Array) -> Array:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def softmax(x: Array, axis: Array | int = -1) -> Array:
    """exp(x - max) / sum, over one axis."""
    shifted = np.exp(x - x.max(int(axis), keepdims=True))
    return shifted / shifted.sum(int(axis), keepdims=True)


def layer_norm(
    x: Array, axes: Array, gamma: Array | None = None, beta: Array | None = None,
    epsilon: Array | float = 1e-5,
) -> Array:  # fmt: skip
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta."""
    over = tuple(int(a) for a in axes)
    centred = x - x.mean(over, keepdims=True)
    out = centred / np.sqrt(np.square(centred).mean(over, keepdims=True) + np.float32(epsilon))
    out = out if gamma is None else out * gamma
    return out if beta is None else out + beta


def batch_norm(
    x: Array, mean: Array, variance: Array, gamma: Array | None = None, beta: Array | None = None,
    epsilon: Array | float = 1e-5,
) -> Array:  # fmt: skip
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta of x [B, C, ...], each by channel."""
    shape = (1, -1, *(1,) * (x.ndim - 2))
    scale = (1 if gamma is None else gamma) / np.sqrt(variance + np.float32(epsilon))
    out = (x - mean.reshape(shape)) * scale.reshape(shape)
    return out if beta is None else out + beta.reshape(shape)


def upsample_nearest(
    x: Array, scale_factor_height: Array | float = 1, scale_factor_width: Array | float = 1
) -> Array:
    """Each place of the last two axes repeated, by whole factors."""
    return x.repeat(int(scale_factor_height), -2).repeat(int(scale_factor_width), -1)


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x W^T + b, W [out, in]."""
    out = x @ weight.T
    return out if bias is None else out + bias


def matmul(x: Array, y: Array, transpose_x: Any = False, transpose_y: Any = False) -> Array:
    """Matrix product of the last two axes, either transposed."""
    left = np.swapaxes(x, -1, -2) if transpose_x else x
    right = np.swapaxes(y, -1, -2) if transpose_y else y
    return left @ right


def attention(query: Array, key: Array, value: Array, attn_mask: Array | None = None) -> Array:
    """softmax(Q K^T / sqrt(E) + mask) V; a mask of bools hides false positions."""
    scores = query @ np.swapaxes(key, -1, -2) / np.float32(math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        hidden = attn_mask.dtype == np.bool_
        scores = np.where(attn_mask, scores, -np.inf) if hidden else scores + attn_mask
    return softmax(scores) @ value


def conv(
    x: Array, weight: Array, bias: Array | None = None, strides: Array | None = None,
    pad_type: str = "valid", pad: Array | None = None, dilations: Array | None = None,
    groups: Array | int = 1,
) -> Array:  # fmt: skip
    """Two-dimensional convolution of x [B, C, H, W] with weight [out, C, kh, kw], one group."""
    if x.ndim != 4 or int(groups) != 1 or (dilations is not None and np.any(dilations != 1)):
        raise ValueError("conv supports two dimensions, one group and no dilation")
    if pad_type == "custom" and pad is not None:
        top, bottom, left, right = (int(p) for p in pad)
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    elif pad_type != "valid":
        raise ValueError(f"conv does not support padding '{pad_type}'")
    down, across = (1, 1) if strides is None else (int(s) for s in strides)
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))
    windows = windows[:, :, ::down, ::across]  # [B, C, h, w, kh, kw]
    out = np.tensordot(windows, weight, ((1, 4, 5), (1, 2, 3)))  # [B, h, w, out]
    out = out if bias is None else out + bias
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))


def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale (data - offset); each block of the data has one scale and one offset."""
    repeat = [d // s for d, s in zip(data.shape, scale.shape, strict=True)]

    def wide(array: Array) -> Array:
        for axis, count in enumerate(repeat):
            array = np.repeat(array, count, axis) if count > 1 else array
        return array

    shifted = data.astype(np.float32)
    return wide(scale) * (shifted if offset is None else shifted - wide(offset))


def lut_to_dense(indices: Array, lut: Array, vector_axis: Any = None) -> Array:
    """Entries of a look-up table [groups of each axis, entries, 1] by index."""
    if lut.shape[-1] != 1:
        raise ValueError("constexpr_lut_to_dense supports entries of one number")
    rank = indices.ndim
    positions = []
    for axis in range(rank):
        each = indices.shape[axis] // lut.shape[axis]
        shape = [1] * rank
        shape[axis] = indices.shape[axis]
        positions.append((np.arange(indices.shape[axis]) // each).reshape(shape))
    return lut[(*positions, indices.astype(np.int64), 0)]


def _reduce(function: Callable[..., Any]) -> Callable[..., Array]:
    def run(x: Array, axes: Array | None = None, keep_dims: Any = False) -> Array:
        over = None if axes is None else tuple(int(a) for a in axes)
        return np.asarray(function(x, axis=over, keepdims=bool(keep_dims)))

    return run


def _best(function: Callable[..., Any]) -> Callable[..., Array]:
    """Index of the largest or smallest value; the first of equal ones."""

    def run(x: Array, axis: Any = -1, keep_dims: Any = True, output_dtype: str = "int32") -> Array:
        indices = function(x, axis=int(axis), keepdims=bool(keep_dims))
        return np.asarray(indices).astype(CASTS[output_dtype])

    return run


def _norm(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    return np.sqrt(np.square(x).sum(axis=axis, keepdims=keepdims))


def _sum(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    return x.sum(axis=axis, keepdims=keepdims, dtype=x.dtype)


OPERATORS: dict[str, Callable[..., Any]] = {
    "abs": lambda x: np.abs(x),
    "add": lambda x, y: x + y,
    "argsort": lambda x, axis=-1, ascending=False: np.argsort(
        x if ascending else -x, int(axis), kind="stable"
    ),
    "batch_norm": batch_norm,
    "cast": lambda x, dtype: x.astype(CASTS[dtype]),
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "concat": concat,
    "const": lambda val: val,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense,
    "conv": conv,
    "cos": lambda x: np.cos(x),
    "cumsum": cumsum,
    "equal": lambda x, y: x == y,
    "erf": erf,
    "exp": lambda x: np.exp(x),
    "expand_dims": expand_dims,
    "fill": lambda shape, value: np.full([int(s) for s in shape], value),
    "floor": lambda x: np.floor(x),
    "floor_div": lambda x, y: np.floor_divide(x, y),
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gelu": gelu,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "identity": lambda x: x,
    "inverse": lambda x, epsilon=1e-4: 1 / (x + np.float32(epsilon)),
    "layer_norm": layer_norm,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "linear": linear,
    "log": lambda x, epsilon=1e-45: np.log(x + np.float32(epsilon)),
    "logical_and": lambda x, y: x & y,
    "logical_not": lambda x: ~x,
    "logical_or": lambda x, y: x | y,
    "matmul": matmul,
    "maximum": lambda x, y: np.maximum(x, y),
    "minimum": lambda x, y: np.minimum(x, y),
    "mod": lambda x, y: np.mod(x, y),
    "mul": lambda x, y: x * y,
    "not_equal": lambda x, y: x != y,
    "one_hot": one_hot,
    "pad": pad,
    "pow": lambda x, y: np.power(x, y),
    "range_1d": lambda start, end, step: np.arange(start, end, step),
    "real_div": lambda x, y: x / y,
    "reduce_argmax": _best(np.argmax),
    "reduce_argmin": _best(np.argmin),
    "reduce_l2_norm": _reduce(_norm),
    "reduce_max": _reduce(np.max),
    "reduce_mean": _reduce(np.mean),
    "reduce_min": _reduce(np.min),
    "reduce_sum": _reduce(_sum),
    "relu": lambda x: np.maximum(x, 0),
    "reshape": reshape,
    "rsqrt": lambda x, epsilon=1e-12: 1 / np.sqrt(x + np.float32(epsilon)),
    "scaled_dot_product_attention": attention,
    "select": lambda cond, a, b: np.where(cond, a, b),
    "sigmoid": sigmoid,
    "sign": lambda x: np.sign(x),
    "silu": silu,
    "softplus": softplus,
    "sin": lambda x: np.sin(x),
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "softmax": softmax,
    "split": split,
    "sqrt": lambda x: np.sqrt(x),
    "square": lambda x: np.square(x),
    "squeeze": squeeze,
    "stack": lambda values, axis: np.stack(values, int(axis)),
    "sub": lambda x, y: x - y,
    "tanh": lambda x: np.tanh(x),
    "tile": lambda x, reps: np.tile(x, tuple(int(r) for r in reps)),
    "topk": topk,
    "transpose": lambda x, perm: np.transpose(x, tuple(int(p) for p in perm)),
    "upsample_nearest_neighbor": upsample_nearest,
}
STATES = ("read_state", "write_state")  # executed by the engine, which owns the states
LISTS = ("values",)  # inputs that are lists of values
