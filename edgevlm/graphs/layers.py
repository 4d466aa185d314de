"""Static forms of the layers that families share, over the checkpoint's own modules.

The modules hold the weights; the forward here is written for tracing. This is the one place where
a model is made canonical, and these are the rewrites, each exact and each compared with
transformers' own forward in tests/models:

    position lookup of a view (fractions, buckets)  -> the whole table added      PatchEmbedding
    attention by module setting                     -> one operator, [1, S, H*D]  edgevlm.graphs.ops
    cache objects, masks made inside                -> plain inputs and outputs   DecoderLayer
    rotary tables made inside, from positions       -> inputs that the host makes DecoderLayer
    RMSNorm in five operators                       -> one                        rms_norm
    2x2 pooling by interpolation (LLaVA clips)      -> a constant matrix          llava_onevision
    AnyRes packing by the image's shape             -> a fixed permutation        shared.anyres
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgevlm.graphs.ops import attention, attention_kv, later_rows, rotary


class PatchEmbedding(nn.Module):
    """Patches of one view to tokens: pixel_values f32 [1, 3, h_px, w_px] -> [1, N, C].

    A full square view uses each position embedding once in raster order, so the position lookup of
    the original (fractions and buckets for padded views) folds to adding the whole table.
    """

    def __init__(self, patch: nn.Conv2d, position: nn.Embedding) -> None:
        super().__init__()
        self.patch, self.position = patch, position

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.patch(pixel_values).flatten(2).transpose(1, 2)
        return tokens + self.position.weight.unsqueeze(0)


class EncoderLayer(nn.Module):
    """A SigLIP or CLIP encoder layer: pre-norm attention and MLP, [1, N, C] -> same.

    Sources: arXiv 2303.15343, arXiv 2103.00020.
    """

    layer: Any  # transformers' module; its attributes have no types

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        attn: Any = layer.self_attn
        self.heads, self.head_size = attn.num_heads, attn.head_dim

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, *self.project(x))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [1, N, H*D]."""
        attn, h = self.layer.self_attn, self.layer.layer_norm1(x)
        return attn.q_proj(h), attn.k_proj(h), attn.v_proj(h)

    def finish(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The layer's output [1, N, C], from its input and what `project` gave."""
        return self.feed(self.attend(x, query, key, value))

    def attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """The first half: attention, with `bias` [1, 1, 1, N] added to the scores."""
        mixed: Tensor = self.layer.self_attn.out_proj(
            attention(query, key, value, self.heads, bias)
        )
        return x + mixed

    def feed(self, x: Tensor) -> Tensor:
        """The second half: the MLP."""
        fed: Tensor = self.layer.mlp(self.layer.layer_norm2(x))
        return x + fed

    def query_key(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The norm of its input, and what makes queries and keys of that."""
        attn = self.layer.self_attn
        return self.layer.layer_norm1, attn.q_proj, attn.k_proj


class ScaledEncoderLayer(EncoderLayer):
    """InternViT's encoder layer, [1, N, C] -> same (arXiv 2312.14238, section 3).

    What attention and MLP add is multiplied channel by channel (layer scale, arXiv 2103.17239); its
    largest model norms queries and keys over all heads.
    """

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        self.layer = layer
        self.heads, self.head_size = layer.attention.num_heads, layer.attention.head_dim

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, h = self.layer.attention, self.layer.layernorm_before(x)
        return attn.q_norm(attn.q_proj(h)), attn.k_norm(attn.k_proj(h)), attn.v_proj(h)

    def attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        mixed = self.layer.attention.projection_layer(
            attention(query, key, value, self.heads, bias)
        )
        added: Tensor = x + self.layer.lambda_1 * mixed
        return added

    def feed(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.layer.lambda_2 * self.layer.mlp(self.layer.layernorm_after(x))
        return added

    def query_key(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        attn = self.layer.attention
        query = nn.Sequential(attn.q_proj, attn.q_norm)
        return self.layer.layernorm_before, query, nn.Sequential(attn.k_proj, attn.k_norm)


class QueryKey(nn.Module):
    """Queries and keys of an encoder layer, nothing else of it: [1, N, C] -> two [1, N, H*D]."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        self.norm, self.q_proj, self.k_proj = layer.query_key()
        self.heads = layer.heads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm(x)
        return self.q_proj(h), self.k_proj(h)


@dataclass(frozen=True)
class LayerNumbers:
    """What a decoder layer computes beside Llama's; the defaults are a Llama layer.

    Attributes:
        input_scale: Factor of the layer's input.
        norm_offset: Added to the weights of its norms.
        head_norms: Whether queries and keys are normed head by head, before they are rotated.
        gated: Whether what attention gives is multiplied by the sigmoid of a gate, which stands
            behind the queries of each head (Qwen3-Next).
        rotary: Whether queries and keys are rotated; a layer without sees no positions (NoPE).
        score_scale: Factor of attention scores beside 1 / sqrt(D).
        residual_scale: Factor of what attention and MLP add to their input.
        added_norms: Whether what attention and MLP add to their input is normed too.
        table: Which of the rotary tables turns queries and keys.
        softcap: Bound of attention scores; 0 is none.
        window: Most rows before a token, its own included, that it sees; 0 is all of them.
        causal: Whether no token sees a later one; else a mask says which.
        own_mask: Whether that holds although the mask of its block shows some later ones.
    """

    input_scale: float = 1.0
    norm_offset: float = 0.0
    head_norms: bool = False
    gated: bool = False
    rotary: bool = True
    score_scale: float = 1.0
    residual_scale: float = 1.0
    added_norms: bool = False
    table: int = 0
    softcap: float = 0.0
    window: int = 0
    causal: bool = True
    own_mask: bool = False


@dataclass(frozen=True)
class LayerCall:
    """What a call of the decoder gives each of its layers beside input and state.

    Attributes:
        tables: Rotary tables cos and sin, f32 [1, S, D] each, by `LayerNumbers.table`.
        mask: f32 [1, 1, S, T].
        position: Cache row of the first row, i32 [1].
        bias: What attention to each cache row gets, f32 [1, 1, 1, T].
        count: Rows of the sequence among those of the call, i32 [1], 1 at least; what follows them
            fills up the call and must not change a recurrent state. None is all.
        embeds: Where there is a second table, the tokens' rows of the first, f32 [1, S, C].
        row: The layer's part of their rows of the second, f32 [1, S, E].
    """

    tables: Mapping[int, Sequence[Tensor]]
    mask: Tensor
    position: Tensor
    bias: Tensor | None = None
    count: Tensor | None = None
    embeds: Tensor | None = None
    row: Tensor | None = None


class DecoderLayer(nn.Module):
    """A decoder layer of Llama's kin with its cache outside.

    hidden [1, S, C], key_cache and value_cache [1, G, T, D] -> hidden and the two with S new rows.
    """

    layer: Any
    arrays: ClassVar[int] = 2  # of its state
    recurrent: ClassVar[bool] = False

    def __init__(
        self, layer: nn.Module, heads: int, kv_heads: int, numbers: LayerNumbers | None = None
    ) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads = layer, heads, kv_heads
        self.numbers = numbers or LayerNumbers()

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return str(self.numbers)

    def step(self, x: Tensor, call: LayerCall, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The layer's output, and its state after the call; every layer of a decoder has this."""
        cos, sin = call.tables[self.numbers.table]
        outputs: tuple[Tensor, ...] = self(x, cos, sin, call.mask, call.position, *state, call.bias)
        return outputs

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        position: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        x, numbers = scaled(x, self.numbers.input_scale), self.numbers
        h = rms_norm(self.layer.input_layernorm, x, numbers.norm_offset)
        asked, gate = self._asked(h)
        query, key = self._turned(asked, "q_norm", cos, sin, self.heads), self.keys(h, cos, sin)
        mixed, key, value = attention_kv(
            query, key, self.values(h), key_cache, value_cache, self._seen(x, mask, position),
            position, self.heads, bias,
            scale=numbers.score_scale, softcap=numbers.softcap, window=numbers.window,
            causal=numbers.causal or x.shape[1] == 1,
        )  # fmt: skip
        mixed = mixed if gate is None else mixed * torch.sigmoid(gate)
        return self.feed(self.mixed(x, mixed)), key, value

    def mixed(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's input and what attention adds to it, of its output [1, S, H*D]."""
        return x + self._added(self.layer.self_attn.o_proj(mixed), "post_attention_layernorm")

    def feed(self, x: Tensor) -> Tensor:
        """The second half: the MLP."""
        numbers = self.numbers
        name = "pre_feedforward_layernorm" if numbers.added_norms else "post_attention_layernorm"
        fed = self.layer.mlp(rms_norm(getattr(self.layer, name), x, numbers.norm_offset))
        return x + self._added(fed, "post_feedforward_layernorm")

    def _seen(self, x: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """The mask of this layer, [1, 1, S, T]."""
        if self.numbers.own_mask and x.shape[1] > 1:
            return later_rows(position, x.shape[1], mask.shape[3])[None, None]
        return mask

    def _added(self, x: Tensor, norm: str) -> Tensor:
        """What attention or MLP adds to its input, normed where this layer has such norms."""
        if self.numbers.added_norms:
            x = rms_norm(getattr(self.layer, norm), x, self.numbers.norm_offset)
        return scaled(x, self.numbers.residual_scale)

    def normed(self, x: Tensor) -> Tensor:
        """What the projections take: the layer's input [1, S, C] after its first norm."""
        numbers = self.numbers
        x = scaled(x, numbers.input_scale)
        return rms_norm(self.layer.input_layernorm, x, numbers.norm_offset)

    def queries(self, normed: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries as attention takes them, [1, S, H*D]."""
        return self._turned(self._asked(normed)[0], "q_norm", cos, sin, self.heads)

    def keys(self, normed: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keys as the cache holds them, [1, S, G*D]."""
        attn = self.layer.self_attn
        return self._turned(attn.k_proj(normed), "k_norm", cos, sin, self.kv_heads)

    def values(self, normed: Tensor) -> Tensor:
        """Values as the cache holds them, [1, S, G*D]."""
        values: Tensor = self.layer.self_attn.v_proj(normed)
        return values

    def _asked(self, normed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Queries before their norm and rotation, and the gate, [1, S, H*D] each."""
        projected = self.layer.self_attn.q_proj(normed)
        if not self.numbers.gated:
            return projected, None
        rows, width = projected.shape[1], projected.shape[-1] // self.heads // 2
        by_head = projected.reshape(1, rows * self.heads, -1)  # [1, S*heads, 2*D]
        halves = by_head[..., :width], by_head[..., width:]
        query, gate = (half.reshape(1, rows, -1) for half in halves)
        return query, gate

    def _turned(self, x: Tensor, norm: str, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        if self.numbers.head_norms:
            # Each head is a row: targets take three dimensions.
            by_head = x.reshape(1, x.shape[1] * heads, -1)  # [1, S*heads, D]
            norms, offset = self.layer.self_attn, self.numbers.norm_offset
            x = rms_norm(getattr(norms, norm), by_head, offset).reshape(x.shape)
        return rotary(x, cos, sin, heads) if self.numbers.rotary else x


def split_states(
    layers: Sequence[Any], tensors: Sequence[Tensor]
) -> tuple[Sequence[Tensor], list[Sequence[Tensor]]]:
    """Tensors that end with the states of layers: those before, and the state of each layer."""
    start = at = len(tensors) - sum(layer.arrays for layer in layers)
    states = []
    for layer in layers:
        states.append(tensors[at : at + layer.arrays])
        at += layer.arrays
    return tensors[:start], states


class FinalNorm(nn.Module):
    """The norm after the last decoder layer, [1, S, C] -> same; `offset` is added to its weight."""

    def __init__(self, norm: nn.Module, offset: float = 0.0) -> None:
        super().__init__()
        self.norm, self.offset = norm, offset

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"offset={self.offset}"

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(self.norm, x, self.offset)


def scaled(x: Tensor, factor: float) -> Tensor:
    """x times a factor; a factor of 1 leaves no operator."""
    return x if factor == 1 else x * factor


def rms_norm(norm: Any, x: Tensor, offset: float = 0.0) -> Tensor:
    """RMSNorm (arXiv 1910.07467) as one operator, with the module's weight and epsilon."""
    weight = norm.weight if offset == 0 else norm.weight + offset
    epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, epsilon)
