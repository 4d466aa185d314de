"""Traced operators rewritten with operators that XNNPACK supports.

XNNPACK has no attention over a cache, takes a mean over the two last of four dimensions alone, and
computes the exact GELU for the one by tanh. An operator without its support runs as a kernel of
ExecuTorch between two calls of XNNPACK. Each function here is an equivalent of supported operators.

Source: ExecuTorch 1.5, backends/xnnpack/partition/config (supported operators and conditions).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgevlm.graphs.ops import ATTENTION, ATTENTION_KV, ROTARY, outside_window, written_out


def attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None
) -> Tensor:
    """`edgevlm.graphs.ops.attention`: softmax(Q K^T / sqrt(D) + bias) V, tensors [W, S, H*D]."""
    windows, count, _ = query.shape
    q, k, v = (_by_head(x, heads) for x in (query, key, value))
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
    if bias is not None:
        scores = scores + bias.view(bias.shape[1:])
    out = torch.bmm(torch.softmax(scores, -1), v)
    if windows == 1:
        return out.transpose(0, 1).reshape(1, count, -1)
    return out.view(windows, heads, count, -1).transpose(1, 2).reshape(windows, count, -1)


def attention_kv(
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
    """`edgevlm.graphs.ops.attention_kv`; writes the new rows into the given caches."""
    groups, rows, total = key_cache.shape[1], key.shape[1], key_cache.shape[2]
    index = position.long() + torch.arange(rows)
    write = torch.ops.aten.index_put_
    write(key_cache, [None, None, index], _split(key, groups))
    write(value_cache, [None, None, index], _split(value, groups))
    seen = mask if bias is None else mask + bias
    if 0 < window < total:
        seen = seen + outside_window(position, rows, total, window)
    out = written_out(query, key_cache, value_cache, seen, heads, scale, softcap)
    return out, key_cache, value_cache


def rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """`edgevlm.graphs.ops.rotary`: tensors [1, S, H*D], tables [1, S, d]."""
    x, size = x.view(1, x.shape[1], heads, -1), cos.shape[-1]
    x, rest = (x[..., :size], x[..., size:]) if size < x.shape[-1] else (x, None)
    half = size // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    cos, sin = (table.view(1, x.shape[1], 1, -1) for table in (cos, sin))
    x = x * cos + turned * sin
    return (x if rest is None else torch.cat((x, rest), dim=-1)).flatten(2)


def rms_norm(x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) · weight over the last dimension (arXiv 1910.07467, eq. 4)."""
    assert weight is not None and eps is not None
    squares = (x * x).view(1, x.shape[1], 1, -1)  # four dimensions: the mean is then a pooling
    mean = squares.mean((-2, -1), keepdim=True).view(1, x.shape[1], 1)
    return x * torch.rsqrt(mean + eps) * weight


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """GELU (arXiv 1606.08415); by tanh as x sigmoid(2u), which equals x (1 + tanh u) / 2.

    XNNPACK would compute the exact one for both, with a difference of up to 4.7e-4.
    """
    if approximate != "tanh":
        return torch.nn.functional.gelu(x)
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[W, S, H*D] -> [W*H, S, D]."""
    if x.shape[0] == 1:
        return x.view(x.shape[1], heads, -1).transpose(0, 1)
    return _split(x, heads).reshape(x.shape[0] * heads, x.shape[1], -1)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # [W, heads, S, D]


LOWERINGS: dict[object, Callable[..., object]] = {
    ATTENTION: attention,
    ATTENTION_KV: attention_kv,
    ROTARY: rotary,
    torch.ops.aten.rms_norm.default: rms_norm,
    torch.ops.aten.gelu.default: gelu,
}
