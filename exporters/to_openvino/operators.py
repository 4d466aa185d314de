"""Our operators in plain ones, as OpenVINO's PyTorch frontend reads them.

    attention      scaled_dot_product_attention, one operator of OpenVINO
    attention_kv   matmuls over the old rows of the cache and over the new ones, one softmax of both
    rotary         products and a half turn; the CPU plugin fuses them
    arange         integers, converted to what they are in PyTorch

The cache is read only: the new rows alone are outputs, and the engine writes them where they
belong. A cache that is written inside the graph costs a copy and a transpose of all of it: on two
cores a decode step of 8 layers over 1,024 rows took 8.0 ms so, and 0.5 ms in this form
(OpenVINO 2026.4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgevlm.errors import ExportError
from edgevlm.graphs.ops import ATTENTION, ROTARY, capped, outside_window

HIDDEN = -1e4  # what hides a row in a mask


def attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None
) -> Tensor:
    """`edgevlm.graphs.ops.attention`: softmax(Q K^T / sqrt(D) + bias) V, tensors [W, S, H*D]."""
    q, k, v = (_split(x, heads) for x in (query, key, value))
    return scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def masks(
    mask: Tensor, position: Tensor, rows: int, bias: Tensor | None, window: int
) -> tuple[Tensor, Tensor]:
    """What is added to the scores of old rows [1, 1, S, T], and to those of new ones [1, 1, S, S].

    Args:
        mask: f32 [1, 1, S, T].
        position: i32 [1], the cache row of the first new token.
        rows: S.
        bias: f32 [1, 1, 1, T] or None.
        window: Most rows before a token, its own included, that it sees; 0 is all of them.
    """
    total, seen = mask.shape[3], mask if bias is None else mask + bias
    if 0 < window < total:
        seen = seen + outside_window(position, rows, total, window)
    index = position + torch.arange(rows, dtype=torch.int32)
    old = torch.arange(total, dtype=torch.int32) < position
    return seen + torch.where(old, 0.0, HIDDEN), seen.index_select(3, index)


def attention_kv(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    seen: tuple[Tensor, Tensor],
    heads: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`edgevlm.graphs.ops.attention_kv` over `masks`; gives the new rows [1, G, S, D], not caches.

    Query heads that share keys are rows of one product, so no key is repeated.
    """
    _, groups, total, size = key_cache.shape
    rows = query.shape[1]
    q = _split(query, heads).reshape(1, groups, -1, size) * (scale * size**-0.5)
    new_keys, new_values = (_split(x, groups) for x in (key, value))
    scores = [
        capped((q @ keys.transpose(2, 3)).view(1, heads, rows, -1), softcap) + hidden
        for keys, hidden in zip((key_cache, new_keys), seen, strict=True)
    ]
    weights = torch.softmax(torch.cat(scores, 3), 3)
    parts = torch.split(weights, [total, rows], 3)
    old, new = (part.reshape(1, groups, -1, part.shape[3]) for part in parts)
    out = (old @ value_cache + new @ new_values).view(1, heads, rows, size)
    return out.transpose(1, 2).flatten(2), new_keys, new_values


def written(cache: Tensor, rows: Tensor, position: Tensor) -> Tensor:
    """A cache [1, G, T, D] with rows [1, G, S, D] from `position` on, for what reads it further."""
    index = position.long() + torch.arange(rows.shape[2])
    return cache.index_copy(2, index, rows)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """`edgevlm.graphs.ops.rotary`: tensors [1, S, H*D], tables [1, S, d]."""
    x, size = x.view(1, x.shape[1], heads, -1), cos.shape[-1]
    x, rest = (x[..., :size], x[..., size:]) if size < x.shape[-1] else (x, None)
    half = size // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    x = x * cos.unsqueeze(2) + turned * sin.unsqueeze(2)
    return (x if rest is None else torch.cat((x, rest), dim=-1)).flatten(2)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # [W, heads, S, D]


def arange(*bounds: float, dtype: torch.dtype | None = None, **_: object) -> Tensor:
    """Whole numbers in a row; the frontend takes those of float bounds for integers (2026.4)."""
    if not all(float(bound).is_integer() for bound in bounds):
        raise ExportError(f"arange of {bounds}, expected whole numbers; write them as a constant")
    whole = all(isinstance(bound, int) for bound in bounds)
    return torch.arange(*map(int, bounds)).to(dtype or (torch.int64 if whole else torch.float32))


LOWERINGS: dict[object, Callable[..., object]] = {
    ATTENTION: attention,
    ROTARY: rotary,
    torch.ops.aten.arange.default: arange,
    torch.ops.aten.arange.start: arange,
    torch.ops.aten.arange.start_step: arange,
}
