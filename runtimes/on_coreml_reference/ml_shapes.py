"""Operations of ML programs that move, split and sort values, in numpy; see `ml_operators`."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgevlm.runtimes.arrays import Array

# Types of programs in numpy: float16 there is rounded float32 here.
CASTS = {
    "fp16": np.float32, "fp32": np.float32, "int32": np.int32, "int16": np.int16,
    "uint16": np.uint16, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
}  # fmt: skip


def reshape(x: Array, shape: Array) -> Array:
    """The same elements; 0 keeps an axis, -1 is inferred."""
    sizes = [x.shape[i] if int(s) == 0 else int(s) for i, s in enumerate(shape)]
    return x.reshape(sizes)


def squeeze(x: Array, axes: Array | None = None) -> Array:
    """Without axes of size one."""
    return x.squeeze(None if axes is None else tuple(int(a) for a in axes))


def expand_dims(x: Array, axes: Array) -> Array:
    """With new axes of size one, at these positions of the result."""
    return np.expand_dims(x, tuple(int(a) for a in axes))


def concat(values: tuple[Array, ...], axis: Array | int, interleave: Any = False) -> Array:
    """Concatenation along an axis."""
    if interleave:
        raise ValueError("concat does not support interleave")
    return np.concatenate([np.atleast_1d(v) for v in values], int(axis))


def split(
    x: Array, axis: Array | int, num_splits: Any = None, split_sizes: Array | None = None
) -> tuple[Array, ...]:
    """Parts of x along an axis."""
    if split_sizes is None:
        return tuple(np.split(x, int(num_splits), int(axis)))
    return tuple(np.split(x, np.cumsum(split_sizes)[:-1], int(axis)))


def _span(
    shape: tuple[int, ...], begin: Array, end: Array, stride: Array | None,
    begin_mask: Array | None, end_mask: Array | None, squeeze_mask: Array | None,
) -> tuple[slice | int, ...]:  # fmt: skip
    """The slices that begin, end, stride and the three masks of an operation stand for."""
    slices: list[slice | int] = []
    for axis in range(len(shape)):
        step = 1 if stride is None else int(stride[axis])
        if squeeze_mask is not None and squeeze_mask[axis]:
            slices.append(int(begin[axis]))
            continue
        first = None if begin_mask is not None and begin_mask[axis] else int(begin[axis])
        last = None if end_mask is not None and end_mask[axis] else int(end[axis])
        slices.append(slice(first, last, step))
    return tuple(slices)


def slice_by_index(
    x: Array, begin: Array, end: Array, stride: Array | None = None,
    begin_mask: Array | None = None, end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:  # fmt: skip
    """A slice of x, as in Python."""
    return x[_span(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)]


def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """A slice of x by its first element and size; -1 is up to the end."""
    pairs = zip(begin, size, strict=True)
    return x[tuple(slice(int(b), None if s == -1 else int(b + s)) for b, s in pairs)]


def slice_update(
    x: Array, update: Array, begin: Array, end: Array, stride: Array | None = None,
    begin_mask: Array | None = None, end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:  # fmt: skip
    """x with a slice replaced."""
    out = x.copy()
    out[_span(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)] = update
    return out


def topk(
    x: Array, k: Any = 1, axis: Any = -1, ascending: Any = False, sort: Any = True,
    return_indices: Any = True, output_indices_dtype: str = "int32",
) -> tuple[Array, ...]:  # fmt: skip
    """The k largest (smallest if `ascending`) in order; the first of equal ones."""
    keyed = x if ascending else -x.astype(np.int64) if x.dtype.kind in "iu" else -x
    order = np.argsort(keyed, int(axis), kind="stable").take(np.arange(int(k)), int(axis))
    values = np.take_along_axis(x, order, int(axis))
    return (values, order.astype(CASTS[output_indices_dtype])) if return_indices else (values,)


def gather(
    x: Array, indices: Array, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False
) -> Array:
    """Slices of x along an axis."""
    if int(batch_dims):
        raise ValueError("gather does not support batch_dims")
    return np.take(x, indices, int(axis))


def gather_along_axis(
    x: Array, indices: Array, axis: Any = 0, validate_indices: Any = False
) -> Array:
    """Elements of x along an axis."""
    return np.take_along_axis(x, indices.astype(np.int64), int(axis))


def one_hot(
    indices: Array, one_hot_vector_size: Any, axis: Any = -1, on_value: Any = 1, off_value: Any = 0
) -> Array:
    """A new axis with `on_value` at the index."""
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
    """Padding at both ends of the last axes."""
    if mode != "constant":
        raise ValueError(f"pad does not support mode '{mode}'")
    ends = [(int(a), int(b)) for a, b in np.asarray(pad).reshape(-1, 2)]
    before = [(0, 0)] * (x.ndim - len(ends))
    return np.pad(x, before + ends, constant_values=np.asarray(constant_val).item())
