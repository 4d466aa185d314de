"""Three operators that stay one node in every trace, because targets want them differently.

    attention      all tokens see all tokens, or what a bias leaves of them (encoders)
    attention_kv   new tokens see the cache, grouped-query (language decoders)
    rotary         rotary position embedding, half-rotation form (RoFormer, arXiv 2104.09864)

Each is defined here by its eager PyTorch form, which is the meaning of the node; an exporter lowers
it to what its target runs best. Layout [1, S, H*D] throughout, as the projections give and
take, so no transpose stands in the graph; `attention` alone takes several windows, whose tokens see
each other and nothing else, as a batch. Shapes: W windows, S new tokens, T cache rows, H query
heads, G key and value heads (H is a multiple of G), D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("edgevlm::attention", mutates_args=())
def attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None
) -> Tensor:
    """softmax(Q K^T / sqrt(D) + bias) V over all tokens of a window.

    Args:
        query: f32 [W, S, H*D].
        key: f32 [W, N, H*D]; N is S, or there are other queries than tokens.
        value: f32 [W, N, H*D].
        heads: H.
        bias: f32 [1, 1, 1, N] for all queries, [1, 1, S, N], or of each head [1, H, S, N].
    """
    q, k, v = (_split(x, heads) for x in (query, key, value))
    return _join(torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias))


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    return torch.empty_like(query)


@torch.library.custom_op("edgevlm::attention_kv", mutates_args=())
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
    """Write S new rows into the cache at `position`, then attend to it.

    Scores are softcap tanh(scale Q K^T / sqrt(D) / softcap) + mask + bias.

    Args:
        query: f32 [1, S, H*D], rotated.
        key: f32 [1, S, G*D], rotated.
        value: f32 [1, S, G*D].
        key_cache: f32 [1, G, T, D].
        value_cache: f32 [1, G, T, D].
        mask: f32 [1, 1, S, T], added to the scores; finite (-1e4 hides a row).
        position: i32 [1], the cache row of the first new token.
        heads: H.
        bias: f32 [1, 1, 1, T], added to the scores of each cache row; no kernel may leave it out.
        scale: Factor of the scores beside 1 / sqrt(D).
        softcap: Bound of the scores before the mask (Gemma 2, arXiv 2408.00118); 0 is none.
        window: Most rows before a token, its own included, that it sees; 0 is all of them.
        causal: Whether the mask hides the rows after a token's own and no others, so that a target
            may use its causal kernel instead.

    Returns:
        Attention output [1, S, H*D], and the cache with the new rows.
    """
    groups, rows = key_cache.shape[1], key.shape[1]
    index = position.long() + torch.arange(rows)
    written_keys = key_cache.index_copy(2, index, _split(key, groups))
    written_values = value_cache.index_copy(2, index, _split(value, groups))
    seen = mask if bias is None else mask + bias
    if window:
        seen = seen + outside_window(position, rows, key_cache.shape[2], window)
    if softcap:
        out = written_out(query, written_keys, written_values, seen, heads, scale, softcap)
        return out, written_keys, written_values
    out = torch.nn.functional.scaled_dot_product_attention(
        _split(query * scale, heads), written_keys, written_values, attn_mask=seen, enable_gqa=True
    )
    return _join(out), written_keys, written_values


@attention_kv.register_fake
def _(
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
    return torch.empty_like(query), torch.empty_like(key_cache), torch.empty_like(value_cache)


def attention_scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Scores of queries [1, S, H*D] and keys [1, N, H*D] before softmax: [1, heads, S, N]."""
    rows, columns = (x.reshape(1, x.shape[1], heads, -1).transpose(1, 2) for x in (query, key))
    return rows * columns.shape[-1] ** -0.5 @ columns.transpose(2, 3)


def outside_window(position: Tensor, rows: int, total: int, window: int) -> Tensor:
    """What a window adds to a mask: f32 [S, T], -1e4 where a cache row lies before it, else 0.

    Args:
        position: i32 [1], the cache row of the first new token.
        rows: S.
        total: T.
        window: Most rows before a token, its own included, that it sees.
    """
    own = position + torch.arange(rows, dtype=torch.int32)
    inside = torch.arange(total, dtype=torch.int32) > (own - window).unsqueeze(1)
    return torch.where(inside, 0.0, -1e4)


def later_rows(position: Tensor, rows: int, total: int) -> Tensor:
    """A causal mask of new rows: f32 [S, T], -1e4 where a cache row lies after a row's own, else 0.

    Args:
        position: i32 [1], the cache row of the first new token.
        rows: S.
        total: T.
    """
    own = position + torch.arange(rows, dtype=torch.int32)
    later = torch.arange(total, dtype=torch.int32) > own.unsqueeze(1)
    return torch.where(later, -1e4, 0.0)


def capped(x: Tensor, bound: float) -> Tensor:
    """Numbers between -bound and bound: bound tanh(x / bound); x itself for a bound of 0."""
    return torch.tanh(x / bound) * bound if bound else x


def written_out(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor,
    heads: int,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> Tensor:
    """`attention_kv` after the rows are written, in plain operators; `seen` is all that is added.

    Query heads that share keys are rows of one matrix product, so no key is repeated.
    """
    _, groups, total, size = keys.shape
    rows = query.shape[1]
    q = _split(query, heads).reshape(groups, -1, size) * (scale * size**-0.5)
    keys, values = (past.view(groups, total, size) for past in (keys, values))
    scores = torch.bmm(q, keys.transpose(1, 2)).view(1, heads, rows, total)
    scores = capped(scores, softcap) + seen
    weights = torch.softmax(scores, -1).view(groups, -1, total)
    return _join(torch.bmm(weights, values).view(1, heads, rows, size))


@torch.library.custom_op("edgevlm::rotary", mutates_args=())
def rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate x [1, S, H*D] by cos, sin [1, S, d] whose two halves are equal.

    Where d is less than D the first d numbers of each head turn, and the others stay.
    """
    x = x.view(1, x.shape[1], heads, -1)
    x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    x = x * cos.unsqueeze(2) + turned * sin.unsqueeze(2)
    return torch.cat((x, rest), dim=-1).flatten(2)


@rotary.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    return torch.empty_like(x)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # [W, heads, S, D]


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # [W, S, heads*D]


@register_flop_formula(torch.ops.edgevlm.attention)
def _attention_flops(query: tuple[int, ...], key: tuple[int, ...], *_: object, **__: object) -> int:
    return 4 * query[0] * query[1] * key[1] * query[2]


@register_flop_formula(torch.ops.edgevlm.attention_kv)
def _attention_kv_flops(query: tuple[int, ...], *rest: tuple[int, ...], **__: object) -> int:
    # Worst case: every new token sees the full cache.
    return 4 * query[1] * rest[2][2] * query[2]


# The nodes as they stand in a trace; an exporter lowers each.
ATTENTION = torch.ops.edgevlm.attention.default
ATTENTION_KV = torch.ops.edgevlm.attention_kv.default
ROTARY = torch.ops.edgevlm.rotary.default
