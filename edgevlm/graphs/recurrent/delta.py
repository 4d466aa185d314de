"""The gated delta rule: a layer whose memory is one matrix a head, whatever the length of a prompt.

A head holds S [Dk, Dv]. A row with query q, key k and value v, which keeps exp(g) of what was there
(g <= 0) and writes with strength b, does

    S <- exp(g) S        S <- S + k (b (v - k^T S))^T        o = q^T S                       (1)

`delta_row` is this for one row. `delta_chunks` is the same for many, as matrix products of chunks
of at most 64 rows. Inside a chunk, what row i writes depends on what the rows j < i wrote:

    n_i = b_i (v_i - e(0, i) k_i^T S) + sum over j < i of a_ij n_j,
    a_ij = -b_i e(j, i) k_i^T k_j                                                            (2)

where e(j, i) = exp(g_j+1 + ... + g_i), so the rows written are (I - A)^-1 times the first term. A
is strictly lower triangular, and its inverse is made of the inverses of blocks on the diagonal,
merged in pairs: T1 and T2 make [[T1, 0], [T2 A21 T1, T2]]. That is as exact as substituting row by
row, which a static graph would have to unroll; the shorter product (I + A)(I + A^2)(I + A^4)... is
not: where keys are alike its terms grow to 4e9 before they cancel.

Masks are constants, and sums of g are products with a triangle: e(j, i) is a sum of the rows
between alone, so that it stays exact behind a row that has forgotten all before it.

Sources: Gated DeltaNet (arXiv 2412.06464, section 3.3); DeltaNet (arXiv 2406.06484, section 3.2)
for the chunks; Qwen3.5 in transformers' `models/qwen3_5/modeling_qwen3_5.py` for norms and gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgevlm.graphs.layers import LayerCall, LayerNumbers, rms_norm
from edgevlm.graphs.recurrent.short_convolution import causal_convolution, taps_of

CHUNK = 64  # rows, as in the original
UNIT_EPSILON = 1e-6  # of the original's norm of queries and keys


def delta_masks() -> Tensor:
    """Constants of a chunk, rows i and columns j, f32 [3 + 6, CHUNK, CHUNK].

    i = j; j <= i; j < i; then, for blocks of 1, 2, ... 32 rows, what lies in the rows of the second
    and the columns of the first of a pair of blocks on the diagonal.
    """
    with torch.device("cpu"):
        i, j = torch.arange(CHUNK)[:, None], torch.arange(CHUNK)[None]
        sizes = [2**n for n in range((CHUNK - 1).bit_length())]
        pairs = [(i // s > j // s) & (i // (2 * s) == j // (2 * s)) for s in sizes]
        return torch.stack([i == j, j <= i, j < i, *pairs]).float()


def delta_row(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, strength: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Equation (1) for one row.

    Args:
        query: f32 [1, H, Dk].
        key: f32 [1, H, Dk].
        value: f32 [1, H, Dv].
        decay: g, f32 [1, H, 1].
        strength: b, f32 [1, H, 1].
        state: S, f32 [H, Dk, Dv].

    Returns:
        Outputs [1, H, Dv] and the state after the row.
    """
    heads = state.shape[0]
    q, k, v, g, b = (x.view(heads, 1, -1) for x in (query, key, value, decay, strength))
    state = state * g.exp()
    new = (v - torch.bmm(k, state)) * b
    state = state + k.view(heads, -1, 1) * new
    return torch.bmm(q, state).view(1, heads, -1), state


def delta_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    strength: Tensor,
    state: Tensor,
    masks: Tensor,
) -> tuple[Tensor, Tensor]:
    """Equation (1) for S rows, by equation (2) for each chunk of them.

    Args:
        query: f32 [S, H, Dk].
        key: f32 [S, H, Dk].
        value: f32 [S, H, Dv].
        decay: g, f32 [S, H, 1].
        strength: b, f32 [S, H, 1].
        state: S, f32 [H, Dk, Dv].
        masks: `delta_masks`.

    Returns:
        Outputs [S, H, Dv] and the state after the last row.
    """
    rows, heads, _ = key.shape
    count = -(-rows // CHUNK)
    size = -(-rows // count)
    q, k, v, g, b = (_cut(x, count, size) for x in (query, key, value, decay, strength))
    masks = masks if size == CHUNK else masks[:, :size, :size]
    same, upto, before, *pairs = masks.chunk(len(masks))

    kept = _kept(g, upto, before)  # e(j, i), [count*H, size, size]
    kept_of_state = kept[:, :, :1] * g[:, :1].exp()  # e(0, i), [count*H, size, 1]
    columns, written = k.transpose(1, 2), k * b
    inverse = unit_inverse(torch.bmm(written, columns) * kept * -before, same, pairs)
    values = torch.bmm(inverse, v * b)
    reads = torch.bmm(inverse, written * kept_of_state)
    scores = torch.bmm(q, columns) * kept
    # One product for both that read the state, for whoever writes the new one over it.
    readers, kept_to_end = torch.cat((reads, q * kept_of_state), 1), columns * kept[:, -1:]

    outputs = []
    for first in range(0, count * heads, heads):
        own = slice(first, first + heads)
        read = torch.bmm(readers[own], state)
        new = values[own] - read[:, :size]
        outputs.append(read[:, size:] + torch.bmm(scores[own], new))
        state = state * kept_of_state[own, -1:] + torch.bmm(kept_to_end[own], new)
    out = torch.cat(outputs).view(count, heads, size, -1).transpose(1, 2)
    return out.reshape(count * size, heads, -1)[:rows], state


def unit_inverse(system: Tensor, same: Tensor, pairs: list[Tensor]) -> Tensor:
    """(I - A)^-1 of strictly lower triangular matrices [B, n, n].

    Args:
        system: A.
        same: I, [1, n, n].
        pairs: For blocks of 1, 2, 4, ... rows what joins two of them, [1, n, n] each.
    """
    inverse, size = system * pairs[0] + same, 2
    for mask in pairs[1:]:
        if size >= system.shape[1]:
            break
        inverse = inverse + torch.bmm(torch.bmm(inverse, system * mask), inverse)
        size *= 2
    return inverse


def _cut(x: Tensor, count: int, size: int) -> Tensor:
    """Rows [S, H, D] as chunks [count*H, size, D], those of a chunk one after the other.

    What is filled up with zeros has decay and strength 0, and changes nothing.
    """
    added = count * size - x.shape[0]
    if added:
        x = nn.functional.pad(x, (0, 0, 0, 0, 0, added))
    heads = x.shape[1]
    return x.reshape(count, size, heads, -1).transpose(1, 2).reshape(count * heads, size, -1)


def _kept(decay: Tensor, upto: Tensor, before: Tensor) -> Tensor:
    """e(j, i) for j <= i, else 0: [B, n, n] of g [B, n, 1].

    One product for all chunks: their columns stand side by side.
    """
    batch, size, _ = decay.shape
    terms = decay.transpose(0, 1) * before.transpose(0, 1)  # [n, B, n]: g_t where t > j
    sums = torch.bmm(upto, terms.reshape(1, size, batch * size))
    return sums.view(size, batch, size).transpose(0, 1).exp() * upto


class GatedDelta(nn.Module):
    """Qwen3.5's `linear_attn`: projections, short convolution, delta rule, gated norm.

    Normed rows [1, S, C] and states -> [1, S, C] and the states after the rows:

        past   [1, width - 1, F]     rows before, of queries, keys and values, F = 2 Hk Dk + Hv Dv
        state  [1, Hv, Dk, Dv]       a matrix a head

    Rows from `count` on enter neither. A key head serves Hv / Hk value heads that stand side by
    side.
    """

    masks: Tensor
    unit: Tensor

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        self.heads, self.key_heads = mixer.num_v_heads, mixer.num_k_heads
        self.key_size = mixer.head_k_dim
        self.in_qkv, self.in_gate = mixer.in_proj_qkv, mixer.in_proj_z
        self.in_decay, self.in_strength = mixer.in_proj_a, mixer.in_proj_b
        self.decay_bias, self.decay_log = mixer.dt_bias, mixer.A_log
        self.norm, self.out = mixer.norm, mixer.out_proj
        self.taps = taps_of(mixer.conv1d)
        unit = torch.full((self.key_size,), self.key_size**-0.5, device="cpu")
        self.register_buffer("unit", unit, persistent=False)
        self.register_buffer("masks", delta_masks(), persistent=False)

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"heads={self.heads}, key_heads={self.key_heads}"

    def forward(
        self, x: Tensor, past: Tensor, state: Tensor, count: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, width = x.shape[1], self.key_heads * self.key_size
        mixed, past = causal_convolution(self.in_qkv(x), past, [*self.taps], count)
        mixed = nn.functional.silu(mixed)
        query = self._unit(mixed[..., :width]) * self.key_size**-0.5
        key = self._unit(mixed[..., width : 2 * width])
        value = mixed[..., 2 * width :].reshape(rows, self.heads, -1)
        decay, strength = self._rates(x, count)
        if rows == 1:
            out, after = delta_row(query, key, value, decay, strength, state[0])
        else:
            out, after = delta_chunks(query, key, value, decay, strength, state[0], self.masks)
        by_head = (1, rows * self.heads, -1)  # targets take three dimensions
        gate = nn.functional.silu(self.in_gate(x).view(by_head))
        gated = (rms_norm(self.norm, out.reshape(by_head)) * gate).view(1, rows, -1)
        return self.out(gated), past, after[None]

    def _rates(self, x: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decay and strength of each row and head, [S, Hv, 1] each, 0 from `count` on."""
        shape = (x.shape[1], self.heads, 1)
        decay = nn.functional.softplus(self.in_decay(x) + self.decay_bias) * -self.decay_log.exp()
        strength = torch.sigmoid(self.in_strength(x))
        decay, strength = decay.view(shape), strength.view(shape)
        if count is None:
            return decay, strength
        inside = (count.float() - torch.arange(shape[0], dtype=torch.float32)).clamp(0, 1)
        inside = inside.view(-1, 1, 1)
        return decay * inside, strength * inside

    def _unit(self, x: Tensor) -> Tensor:
        """Queries or keys [1, S, Hk*Dk] of length 1, by value head [S, Hv, Dk]."""
        rows, each = x.shape[1], self.heads // self.key_heads
        # An RMSNorm of x sqrt(Dk), times 1 / sqrt(Dk).
        wide = x.reshape(1, rows * self.key_heads, -1) * self.key_size**0.5
        unit = nn.functional.rms_norm(wide, (self.key_size,), self.unit, UNIT_EPSILON)
        if each == 1:
            return unit.view(rows, self.heads, -1)
        by_head = unit.view(rows, self.key_heads, 1, -1).expand(-1, -1, each, -1)
        return by_head.reshape(rows, self.heads, -1)


class DeltaLayer(nn.Module):
    """A decoder layer of Qwen3.5 that is recurrent: `GatedDelta` and an MLP, each behind a norm.

    Its norms multiply by 1 + weight. It has no rotary tables and no mask.
    """

    arrays: ClassVar[int] = 2
    recurrent: ClassVar[bool] = True

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.mixer, self.mlp = GatedDelta(layer.linear_attn), layer.mlp
        self.first, self.second = layer.input_layernorm, layer.post_attention_layernorm
        self.numbers = LayerNumbers(norm_offset=1.0)

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return str(self.numbers)

    def step(self, x: Tensor, call: LayerCall, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The layer's output, and its state after the rows of the sequence."""
        outputs: tuple[Tensor, ...] = self(x, *state, call.count)
        return outputs

    def forward(
        self, x: Tensor, past: Tensor, state: Tensor, count: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        offset = self.numbers.norm_offset
        mixed, past, state = self.mixer(rms_norm(self.first, x, offset), past, state, count)
        x = x + mixed
        return x + self.mlp(rms_norm(self.second, x, offset)), past, state
