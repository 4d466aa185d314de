"""Operators of the trace that become one operator of ONNX Runtime each.

The tensors here are symbols: each function puts one node into the graph and says its shape.

Source: onnxruntime docs/ContribOperators.md (GroupQueryAttention, RotaryEmbedding, QuickGelu).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.onnx.ops import symbolic, symbolic_multi_out

from edgevlm.graphs.ops import ATTENTION, ATTENTION_KV, ROTARY, outside_window, written_out


def _attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None
) -> Tensor:
    # Replaced once the graph exists: in float32 or in int8 (`attention`).
    inputs = (query, key, value) if bias is None else (query, key, value, bias)
    return symbolic(
        "edgevlm::Attention",
        inputs,
        {"num_heads": heads},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )


def _attention_kv(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    mask: Tensor,
    position: Tensor,
    heads: int,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
    window: int = 0,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    _, groups, length, size = key_cache.shape
    rows = query.shape[1]
    if 0 < window < length:
        # Not `local_window_size`: whether it counts a token's own row depends on the version
        # (microsoft/onnxruntime#25927).
        before = outside_window(position, rows, length, window)[None, None]
        bias = before if bias is None else bias + before
    if not causal:  # GroupQueryAttention always is, and no bias can lift that
        keys, values = (
            _written(*pair, position) for pair in ((key_cache, key), (value_cache, value))
        )
        seen = mask if bias is None else mask + bias
        return written_out(query, keys, values, seen, heads, scale, softcap), keys, values
    numbers: dict[str, float] = {} if scale == 1 else {"scale": scale * size**-0.5}
    numbers |= {"softcap": softcap} if softcap else {}
    # seqlens_k is the index of the last valid row; the total is the length of the buffer.
    last = position + (rows - 1)
    total = torch.full((), length, dtype=torch.int32)
    inputs: tuple[Tensor | None, ...] = (query, key, value, key_cache, value_cache, last, total)
    if bias is not None:  # broadcast over heads alone; the three inputs between are unused
        inputs += (None, None, None, bias.expand(1, 1, rows, -1))
    out, written_keys, written_values = symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs,
        {"num_heads": heads, "kv_num_heads": groups, **numbers},
        dtypes=(query.dtype, key_cache.dtype, value_cache.dtype),
        shapes=(query.shape, key_cache.shape, value_cache.shape),
        version=1,
    )
    return out, written_keys, written_values


def _written(past: Tensor, new: Tensor, position: Tensor) -> Tensor:
    """A cache [1, G, T, D] with new rows [1, S, G*D] from `position` on."""
    _, groups, _, size = past.shape
    rows = new.view(1, -1, groups, size).transpose(1, 2)
    index = position.long() + torch.arange(new.shape[1])
    return past.scatter(2, index.view(1, 1, -1, 1).expand(rows.shape), rows)


def _rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    half = cos.shape[-1] // 2
    # The tables are this call's rows, so the positions within them start at 0.
    start = torch.zeros((1,), dtype=torch.int64)
    return symbolic(
        "com.microsoft::RotaryEmbedding",
        (x, start, cos[0, :, :half], sin[0, :, :half]),
        {"num_heads": heads, "rotary_embedding_dim": cos.shape[-1]},
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )


def _rms_norm(x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> Tensor:
    assert weight is not None and eps is not None
    # ONNX Runtime registers this operator in the default domain, and fuses it with the residual.
    return symbolic(
        "SimplifiedLayerNormalization",
        (x, weight),
        {"axis": -1, "epsilon": eps, "stash_type": 1},
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # Opaque to torch.onnx's optimizer, which would otherwise store a second, transposed weight.
    inputs = (x, weight) if bias is None else (x, weight, bias)
    shape = (*x.shape[:-1], weight.shape[0])
    return symbolic("edgevlm::Linear", inputs, dtype=x.dtype, shape=shape, version=1)


def _silu(x: Tensor) -> Tensor:
    return symbolic(
        "com.microsoft::QuickGelu", (x,), {"alpha": 1.0}, dtype=x.dtype, shape=x.shape, version=1
    )


LOWERINGS: dict[object, Callable[..., object]] = {
    ATTENTION: _attention,
    ATTENTION_KV: _attention_kv,
    ROTARY: _rotary,
    torch.ops.aten.rms_norm.default: _rms_norm,
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.silu.default: _silu,
}
