"""Operations of ML programs in numpy, each as Apple's documentation of its type says.

A function gets the operation's inputs by name, arrays or Python strings, and gives one array or a
tuple. What is float16 is rounded after each operation by the caller. Names, defaults and rules:
coremltools 9.0, converters/mil/mil/ops/defs (iOS15 to iOS18).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CASTS = {
    "fp16": np.float32, "fp32": np.float32, "int32": np.int32, "int16": np.int16,
    "uint16": np.uint16, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
}  # fmt: skip


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


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x W^T + b, W [out, in]."""
    out = x @ weight.T
    return out if bias is None else out + bias


def matmul(x: Array, y: Array, transpose_x: Any = False, transpose_y: Any = False) -> Array:
    """Products of the last two axes, either transposed."""
    left = np.swapaxes(x, -1, -2) if transpose_x else x
    right = np.swapaxes(y, -1, -2) if transpose_y else y
    return left @ right


def attention(query: Array, key: Array, value: Array, attn_mask: Array | None = None) -> Array:
    """softmax(Q K^T / sqrt(E) + mask) V; a mask of bools hides what is false."""
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
        raise ValueError("conv: only two dimensions, one group, no dilation")
    if pad_type == "custom" and pad is not None:
        top, bottom, left, right = (int(p) for p in pad)
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    elif pad_type != "valid":
        raise ValueError(f"conv: padding '{pad_type}'")
    down, across = (1, 1) if strides is None else (int(s) for s in strides)
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))
    windows = windows[:, :, ::down, ::across]  # [B, C, h, w, kh, kw]
    out = np.tensordot(windows, weight, ((1, 4, 5), (1, 2, 3)))  # [B, h, w, out]
    out = out if bias is None else out + bias
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))


def reshape(x: Array, shape: Array) -> Array:
    """The same elements; 0 keeps an axis, -1 is what is left."""
    sizes = [x.shape[i] if int(s) == 0 else int(s) for i, s in enumerate(shape)]
    return x.reshape(sizes)


def squeeze(x: Array, axes: Array | None = None) -> Array:
    """Without axes of size one."""
    return x.squeeze(None if axes is None else tuple(int(a) for a in axes))


def expand_dims(x: Array, axes: Array) -> Array:
    """With new axes of size one, at these places of the result."""
    return np.expand_dims(x, tuple(int(a) for a in axes))


def concat(values: tuple[Array, ...], axis: Array | int, interleave: Any = False) -> Array:
    """One after the other along an axis."""
    if interleave:
        raise ValueError("concat: interleave")
    return np.concatenate([np.atleast_1d(v) for v in values], int(axis))


def split(
    x: Array, axis: Array | int, num_splits: Any = None, split_sizes: Array | None = None
) -> tuple[Array, ...]:
    """Parts along an axis."""
    if split_sizes is None:
        return tuple(np.split(x, int(num_splits), int(axis)))
    return tuple(np.split(x, np.cumsum(split_sizes)[:-1], int(axis)))


def _span(
    shape: tuple[int, ...], begin: Array, end: Array, stride: Array | None,
    begin_mask: Array | None, end_mask: Array | None, squeeze_mask: Array | None,
) -> tuple[slice | int, ...]:  # fmt: skip
    """What `slice_by_index` and `slice_update` mean by begin, end, stride and the three masks."""
    found: list[slice | int] = []
    for axis in range(len(shape)):
        step = 1 if stride is None else int(stride[axis])
        if squeeze_mask is not None and squeeze_mask[axis]:
            found.append(int(begin[axis]))
            continue
        first = None if begin_mask is not None and begin_mask[axis] else int(begin[axis])
        last = None if end_mask is not None and end_mask[axis] else int(end[axis])
        found.append(slice(first, last, step))
    return tuple(found)


def slice_by_index(
    x: Array, begin: Array, end: Array, stride: Array | None = None,
    begin_mask: Array | None = None, end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:  # fmt: skip
    """A part of x, as Python slices it."""
    return x[_span(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)]


def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """A part of x by its first element and size; -1 is up to the end."""
    pairs = zip(begin, size, strict=True)
    return x[tuple(slice(int(b), None if s == -1 else int(b + s)) for b, s in pairs)]


def slice_update(
    x: Array, update: Array, begin: Array, end: Array, stride: Array | None = None,
    begin_mask: Array | None = None, end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:  # fmt: skip
    """x with a part replaced."""
    out = x.copy()
    out[_span(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)] = update
    return out


def topk(
    x: Array, k: Any = 1, axis: Any = -1, ascending: Any = False, sort: Any = True,
    return_indices: Any = True, output_indices_dtype: str = "int32",
) -> tuple[Array, ...]:  # fmt: skip
    """The k largest (smallest if `ascending`) in order; of equals the first."""
    keyed = x if ascending else -x.astype(np.int64) if x.dtype.kind in "iu" else -x
    order = np.argsort(keyed, int(axis), kind="stable").take(np.arange(int(k)), int(axis))
    values = np.take_along_axis(x, order, int(axis))
    return (values, order.astype(CASTS[output_indices_dtype])) if return_indices else (values,)


def gather(
    x: Array, indices: Array, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False
) -> Array:
    """Slices of x along an axis."""
    if int(batch_dims):
        raise ValueError("gather: batch_dims")
    return np.take(x, indices, int(axis))


def gather_along_axis(
    x: Array, indices: Array, axis: Any = 0, validate_indices: Any = False
) -> Array:
    """Elements of x along an axis."""
    return np.take_along_axis(x, indices.astype(np.int64), int(axis))


def one_hot(
    indices: Array, one_hot_vector_size: Any, axis: Any = -1, on_value: Any = 1, off_value: Any = 0
) -> Array:
    """A new axis that is `on_value` at the index."""
    number = np.arange(int(one_hot_vector_size))
    hot = np.expand_dims(indices, -1) == number
    return np.moveaxis(np.where(hot, on_value, off_value), -1, int(axis))


def cumsum(x: Array, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Array:
    """Running sum along an axis."""
    turned = np.flip(x, int(axis)) if reverse else x
    out = np.cumsum(turned, int(axis), dtype=x.dtype)
    out = out - turned if exclusive else out
    return np.flip(out, int(axis)) if reverse else out


def pad(x: Array, pad: Array, mode: str = "constant", constant_val: Any = 0.0) -> Array:
    """More rows at the ends of the last axes."""
    if mode != "constant":
        raise ValueError(f"pad: mode '{mode}'")
    ends = [(int(a), int(b)) for a, b in np.asarray(pad).reshape(-1, 2)]
    before = [(0, 0)] * (x.ndim - len(ends))
    return np.pad(x, before + ends, constant_values=np.asarray(constant_val).item())


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
        raise ValueError("constexpr_lut_to_dense: entries of more than one number")
    rank = indices.ndim
    place = []
    for axis in range(rank):
        each = indices.shape[axis] // lut.shape[axis]
        shape = [1] * rank
        shape[axis] = indices.shape[axis]
        place.append((np.arange(indices.shape[axis]) // each).reshape(shape))
    return lut[(*place, indices.astype(np.int64), 0)]


def _reduce(function: Callable[..., Any]) -> Callable[..., Array]:
    def run(x: Array, axes: Array | None = None, keep_dims: Any = False) -> Array:
        over = None if axes is None else tuple(int(a) for a in axes)
        return np.asarray(function(x, axis=over, keepdims=bool(keep_dims)))

    return run


def _best(function: Callable[..., Any]) -> Callable[..., Array]:
    """Index of the largest or smallest; of equals the first."""

    def run(x: Array, axis: Any = -1, keep_dims: Any = True, output_dtype: str = "int32") -> Array:
        found = function(x, axis=int(axis), keepdims=bool(keep_dims))
        return np.asarray(found).astype(CASTS[output_dtype])

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
}
STATES = ("read_state", "write_state")  # done by the engine, which owns them
LISTS = ("values",)  # inputs that are lists of values
