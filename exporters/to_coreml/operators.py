"""Translations of traced operators to ML program operators that coremltools 9.0 lacks.

The three of `graphs.ops` become one operator each. Translations are registered while a package is
written, under the names in the trace, for the one version of coremltools that they are tested with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.torch.ops import (
    _get_inputs,
    _get_kwinputs,
    logical_and,
    logical_or,
)
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
from coremltools.converters.mil.frontend.torch.utils import NUM_TO_NUMPY_DTYPE
from coremltools.converters.mil.mil.ops.defs._utils import promote_input_dtypes
from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

import edgevlm.graphs.ops  # noqa: F401  # defines what is translated here
from edgevlm.libraries import replaced


def attention(context: Any, node: Any) -> None:
    """`edgevlm.graphs.ops.attention`: softmax(Q K^T / sqrt(D) + bias) V, tensors [W, S, H*D]."""
    query, key, value, heads, *rest = _get_inputs(context, node)
    split = [_split(x, int(heads.val)) for x in (query, key, value)]
    bias = rest[0] if rest else None
    if bias is not None and bias.shape[2] == 1:  # the same for each query
        bias = mb.tile(x=bias, reps=[1, 1, query.shape[1], 1])
    out = mb.scaled_dot_product_attention(
        query=split[0], key=split[1], value=split[2], attn_mask=bias
    )
    context.add(_join(out, node.name))


def attention_kv(context: Any, node: Any) -> None:
    """`edgevlm.graphs.ops.attention_kv`: writes S rows at `position`, then attends to the cache.

    The queries of a group's heads stand one after the other as rows of one head, so that keys and
    values need not be repeated.
    """
    inputs = _get_inputs(context, node)
    query, key, value, key_cache, value_cache, mask, position, heads = inputs[:8]
    bias = inputs[8] if len(inputs) > 8 else None
    scale, softcap, window = _numbers(context, node)
    _, groups, total, size = key_cache.shape
    rows, repeat = query.shape[1], int(heads.val) // groups
    key, value = (
        _write(past, _split(x, groups), position)
        for past, x in ((key_cache, key), (value_cache, value))
    )
    if scale != 1:
        query = mb.mul(x=query, y=np.float32(scale))
    wide = mb.reshape(x=_split(query, int(heads.val)), shape=[1, groups, repeat * rows, size])
    if bias is not None:
        mask = mb.add(x=mask, y=bias)
    if 0 < window < total:
        mask = mb.add(x=mask, y=_outside_window(position, rows, total, window))
    if repeat > 1:
        mask = mb.tile(x=mask, reps=[1, 1, repeat, 1])
    if softcap:
        out = _capped_attention(wide, key, value, mask, softcap)
    else:
        out = mb.scaled_dot_product_attention(query=wide, key=key, value=value, attn_mask=mask)
    out = mb.reshape(x=out, shape=[1, int(heads.val), rows, size])
    joined = _join(out, node.name)
    context.add((joined, key, value), torch_name=node.name)


def _numbers(context: Any, node: Any) -> tuple[float, float, int]:
    """Scale, softcap and window of an `attention_kv`."""
    defaults = {"scale": 1.0, "softcap": 0.0, "window": 0}
    words = [_get_kwinputs(context, node, name, default=[d])[0] for name, d in defaults.items()]
    scale, softcap, window = (getattr(word, "val", word) for word in words)
    return float(scale), float(softcap), int(window)


def _outside_window(position: Any, rows: int, total: int, window: int) -> Any:
    """`edgevlm.graphs.ops.outside_window`: f32 [S, T], -1e4 before the window, else 0."""
    last_hidden = mb.add(x=np.arange(rows, dtype=np.int32)[:, None] - np.int32(window), y=position)
    hidden = mb.less_equal(x=np.arange(total, dtype=np.int32)[None], y=last_hidden)
    return mb.mul(x=mb.cast(x=hidden, dtype="fp32"), y=np.float32(-1e4))


def _capped_attention(query: Any, key: Any, value: Any, mask: Any, softcap: float) -> Any:
    """Attention whose scores are bounded before the mask, tensors [1, G, rows, D]."""
    small = mb.mul(x=query, y=np.float32(query.shape[-1] ** -0.5 / softcap))
    scores = mb.mul(x=mb.tanh(x=mb.matmul(x=small, y=key, transpose_y=True)), y=np.float32(softcap))
    return mb.matmul(x=mb.softmax(x=mb.add(x=scores, y=mask), axis=-1), y=value)


def rotary(context: Any, node: Any) -> None:
    """`edgevlm.graphs.ops.rotary`: x cos + (-x2, x1) sin, x [1, S, H*D], tables [1, S, d]."""
    x, cos, sin, heads = _get_inputs(context, node)
    rows, size = x.shape[1], x.shape[2] // int(heads.val)
    wide = mb.reshape(x=x, shape=[1, rows, int(heads.val), size])
    turns, rest = cos.shape[2], []
    if turns < size:
        wide, *rest = mb.split(x=wide, split_sizes=[turns, size - turns], axis=3)
    first, second = mb.split(x=wide, num_splits=2, axis=3)
    turned = mb.concat(values=[mb.mul(x=second, y=-1.0), first], axis=3)
    tables = [mb.expand_dims(x=table, axes=[2]) for table in (cos, sin)]
    out = mb.add(x=mb.mul(x=wide, y=tables[0]), y=mb.mul(x=turned, y=tables[1]))
    if rest:
        out = mb.concat(values=[out, *rest], axis=3)
    context.add(mb.reshape(x=out, shape=[1, rows, -1], name=node.name))


def rms_norm(context: Any, node: Any) -> None:
    """RMSNorm (arXiv 1910.07467) over the last axis: x / sqrt(mean(x^2) + epsilon) * weight.

    As the first half of a layer norm over (x, -x), whose mean is zero: squares stay inside one
    operation. On their own they come near the largest float16 (26,480 of 65,504 in the embedded
    model), and a larger model would pass it.
    """
    x, _, weight, epsilon = _get_inputs(context, node)
    both = mb.concat(values=[x, mb.mul(x=x, y=-1.0)], axis=-1)
    normed = mb.layer_norm(x=both, axes=[-1], epsilon=float(epsilon.val))
    half, _ = mb.split(x=normed, num_splits=2, axis=-1)
    context.add(mb.mul(x=half, y=weight, name=node.name))


def gelu(context: Any, node: Any) -> None:
    """GELU, exact or by tanh; coremltools ignores `approximate` as a keyword argument."""
    x, *rest = _get_inputs(context, node)
    (word,) = _get_kwinputs(context, node, "approximate", default=[*rest, None][:1])
    mode = {"tanh": "TANH_APPROXIMATION", "none": "EXACT"}[getattr(word, "val", word) or "none"]
    context.add(mb.gelu(x=x, mode=mode, name=node.name))


def index_select(context: Any, node: Any) -> None:
    """Slices of x by index; Core ML cannot gather bools, so they are cast to int32 and back."""
    x, axis, indices = _get_inputs(context, node)
    flags = x.is_tensor_or_scalar_of(dtype="bool")
    if flags:
        x = mb.cast(x=x, dtype="int32")
    gathered = mb.gather(x=x, indices=indices, axis=axis)
    context.add(mb.cast(x=gathered, dtype="bool") if flags else gathered, node.name)


def floor_divide(context: Any, node: Any) -> None:
    """`x // y`, an integer for integers, where coremltools returns a float."""
    x, y = promote_input_dtypes(_get_inputs(context, node))
    context.add(mb.floor_div(x=x, y=y, name=node.name))


def full(context: Any, node: Any) -> None:
    """A constant; coremltools takes integers without a dtype for float."""
    size, value, *_ = _get_inputs(context, node)
    context.add(mb.const(val=_constant(context, node, size, value.val), name=node.name))


def zeros(context: Any, node: Any) -> None:
    """Zeros of their dtype, which coremltools ignores as a keyword argument."""
    size, *_ = _get_inputs(context, node)
    context.add(mb.const(val=_constant(context, node, size, np.float32(0)), name=node.name))


def _constant(context: Any, node: Any, size: Any, value: Any) -> Any:
    (word,) = _get_kwinputs(context, node, "dtype", default=[None])
    code = getattr(word, "val", word)
    dtype = np.asarray(value).dtype if code is None else np.dtype(NUM_TO_NUMPY_DTYPE[code])
    short = {"int64": "int32", "float64": "float32"}.get(dtype.name, dtype.name)
    return np.full([int(s) for s in size.val], value, short)


def where_number(context: Any, node: Any) -> None:
    """`torch.where` with a number for one branch; the result of integers is an integer."""
    cond, a, b = _get_inputs(context, node)
    is_integer = any(x.is_tensor_or_scalar_of(dtype="int32") and x.rank for x in (a, b))
    a, b = (mb.cast(x=x, dtype="int32" if is_integer else "fp32") for x in (a, b))
    context.add(mb.select(cond=cond, a=_wide(a, cond), b=_wide(b, cond), name=node.name))


def matmul(context: Any, node: Any) -> None:
    """Matrix product, also of vectors: Core ML takes a vector as a matrix of one row or column."""
    x, y = _get_inputs(context, node)
    wide = [mb.expand_dims(x=v, axes=[axis]) if v.rank == 1 else v for v, axis in ((x, 0), (y, 1))]
    out = mb.matmul(x=wide[0], y=wide[1])
    added_axes = [axis for v, axis in ((x, -2), (y, -1)) if v.rank == 1]
    context.add(mb.squeeze(x=out, axes=added_axes) if added_axes else out, node.name)


def _wide(x: Any, like: Any) -> Any:
    """A number as a tensor of another's shape; a tensor as it is."""
    return x if x.rank else mb.fill(shape=list(like.shape), value=x.val)


def alias(context: Any, node: Any) -> None:
    """The same tensor under another name."""
    (x,) = _get_inputs(context, node)
    context.add(mb.identity(x=x, name=node.name))


def _split(x: Any, heads: int) -> Any:
    """[W, S, H*D] -> [W, H, S, D]."""
    wide = mb.reshape(x=x, shape=[*x.shape[:2], heads, x.shape[2] // heads])
    return mb.transpose(x=wide, perm=[0, 2, 1, 3])


def _join(x: Any, name: str) -> Any:
    """[W, H, S, D] -> [W, S, H*D]."""
    windows, heads, rows, size = x.shape
    turned = mb.transpose(x=x, perm=[0, 2, 1, 3])
    return mb.reshape(x=turned, shape=[windows, rows, heads * size], name=name)


def _write(past: Any, rows: Any, position: Any) -> Any:
    """The cache [1, G, T, D] with rows [1, G, S, D] at `position` i32 [1]."""
    end = mb.add(x=position, y=rows.shape[2])
    zero, groups, size = [0], [past.shape[1]], [past.shape[3]]
    return mb.slice_update(
        x=past,
        update=rows,
        begin=mb.concat(values=[zero, zero, position, zero], axis=0),
        end=mb.concat(values=[[1], groups, end, size], axis=0),
    )


FLOAT16_MAX, FINITE = 65504, 1e38  # coremltools treats larger numbers as infinite


def overflows_float16(operation: Any) -> bool:
    """Whether a constant of an operation is finite and too large for float16.

    coremltools lists the indices of all finite numbers for this, which takes nine times the memory
    of the matrix.
    """
    for inputs in operation.inputs.values():
        for var in inputs if isinstance(inputs, list | tuple) else [inputs]:
            source = var.op
            if (
                source is not None
                and source.op_type == "const"
                and var.is_tensor_or_scalar_of("fp32")
            ):
                sizes = np.abs(np.asarray(source.val.val))
                if np.max(sizes, where=sizes < FINITE, initial=0.0) > FLOAT16_MAX:
                    return True
    return False


@contextmanager
def translations() -> Iterator[None]:
    """Register the translations of this file inside the body; restored afterwards."""
    registry = _TORCH_OPS_REGISTRY
    before = dict(registry.name_to_func_mapping)
    try:
        with replaced(FP16ComputePrecision, "fp16_overflow", staticmethod(overflows_float16)):
            for translate, names in TRANSLATIONS:
                for name in names:
                    registry.set_func_by_name(translate, name)
            yield
    finally:
        registry.name_to_func_mapping = before


# Each with the operator names under which coremltools looks it up.
TRANSLATIONS: tuple[tuple[Callable[[Any, Any], None], tuple[str, ...]], ...] = (
    *((f, (f"edgevlm::{f.__name__}", f.__name__)) for f in (attention, attention_kv, rotary)),
    *((f, (f.__name__,)) for f in (rms_norm, gelu, index_select, floor_divide, full, zeros)),
    (logical_and, ("and", "__and__")),
    (logical_or, ("or", "__or__")),
    (where_number, ("where.scalarother", "where.scalarself", "where.scalar")),
    (matmul, ("matmul", "mm", "mv")),
    (alias, ("alias", "clone")),  # an output that is also an input needs an operation that names it
)
