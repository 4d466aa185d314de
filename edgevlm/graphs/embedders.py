"""Static forms of what image and text encoders have beside their layers, and of CLIP's text layers.

As in `layers`, the modules hold the checkpoint's weights and the forward is written for tracing:

    nn.MultiheadAttention of one learned query  -> the query once, linear layers   AttentionPooling
    causal mask made inside                     -> a constant, finite              CausalLayer
    the first end token, found by comparing     -> an index that the host gives    EndHead
    patches packed by the picture's shape       -> one convolution of a grid       GridPatches

Each is compared with transformers' own forward in tests/models/encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.ops import attention
from edgevlm.graphs.parts import EncoderParts

HIDDEN = -1e4  # hides a token in scores, in float16 too


class ClassPatchEmbedding(nn.Module):
    """CLIP's tokens of one view (arXiv 2103.00020), the class token first, after CLIP's first norm.

    pixel_values f32 [1, 3, h_px, w_px] -> [1, 1 + N, C].
    """

    def __init__(self, embeddings: Any, norm: nn.Module) -> None:
        super().__init__()
        self.patch, self.token = embeddings.patch_embedding, embeddings.class_embedding
        self.position, self.norm = embeddings.position_embedding, norm

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token[None, None], patches), dim=1)
        return self.norm(tokens + self.position.weight.unsqueeze(0))


class AttentionPooling(nn.Module):
    """SigLIP's head (arXiv 2303.15343): one query attends to all tokens, then an MLP.

    [1, N, C] -> [1, C]. The query is the same for every picture, so its projection is computed
    here, once; keys, values and output are linear layers that a scheme can round.
    """

    query: Tensor

    def __init__(self, norm: nn.Module, head: Any) -> None:
        super().__init__()
        inside = head.attention
        weights, biases = inside.in_proj_weight.detach(), inside.in_proj_bias.detach()
        (q, k, v), (q_bias, k_bias, v_bias) = weights.chunk(3), biases.chunk(3)
        query = torch.nn.functional.linear(head.probe.detach(), q, q_bias)
        self.register_buffer("query", query)
        self.key, self.value = _linear(k, k_bias), _linear(v, v_bias)
        self.out = _linear(inside.out_proj.weight.detach(), inside.out_proj.bias.detach())
        self.norm, self.layernorm, self.mlp = norm, head.layernorm, head.mlp
        self.heads = inside.num_heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        pooled = self.out(attention(self.query, self.key(x), self.value(x), self.heads))
        embedding: Tensor = pooled + self.mlp(self.layernorm(pooled))
        return embedding[:, 0]


class ClassHead(nn.Module):
    """CLIP's head (arXiv 2103.00020): the class token, normed and projected; [1, 1 + N, C]."""

    def __init__(self, norm: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.norm, self.projection = norm, projection

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.projection(self.norm(x[:, :1]))
        return embedding[:, 0]


class LastHead(nn.Module):
    """SigLIP's text head: the last token, normed and projected; [1, S, C] -> [1, E]."""

    def __init__(self, norm: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.norm, self.projection = norm, projection

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.projection(self.norm(x[:, -1:]))
        return embedding[:, 0]


class EndHead(nn.Module):
    """CLIP's text head: the token `end` i32 [1], normed and projected; [1, S, C] -> [1, E]."""

    def __init__(self, norm: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.norm, self.projection = norm, projection

    def forward(self, x: Tensor, end: Tensor) -> Tensor:
        embedding: Tensor = self.projection(self.norm(x.index_select(1, end)))
        return embedding[:, 0]


class TextPositions(nn.Module):
    """Rows of the tokens and the whole position table: [1, S, C] -> [1, S, C]."""

    def __init__(self, position: nn.Embedding) -> None:
        super().__init__()
        self.position = position

    def forward(self, rows: Tensor) -> Tensor:
        return rows + self.position.weight.unsqueeze(0)


class CausalLayer(EncoderLayer):
    """An encoder layer of which a token sees itself and those before it, [1, S, C] -> same."""

    mask: Tensor

    def __init__(self, layer: nn.Module, tokens: int) -> None:
        super().__init__(layer)
        mask = torch.full((tokens, tokens), HIDDEN).triu(1)
        self.register_buffer("mask", mask[None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(self.attend(x, *self.project(x), self.mask))


class GridPatches(nn.Module):
    """Patches of one view with constant positions: pixels [1, 3, h_px, w_px] -> [1, N, C].

    Args:
        linear: The linear layer over a packed patch, [3·p·p] in the order row, column, colour.
        positions: f32 [N, C].
        size: p, pixels of a patch's side.
    """

    positions: Tensor

    def __init__(self, linear: nn.Linear, positions: Tensor, size: int) -> None:
        super().__init__()
        width = linear.out_features
        weight = linear.weight.detach().reshape(width, size, size, 3).permute(0, 3, 1, 2)
        patch = nn.Conv2d(3, width, size, stride=size, device="meta")
        patch.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        patch.bias = linear.bias
        self.patch = patch
        self.register_buffer("positions", positions.detach())

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.patch(pixel_values).flatten(2).transpose(1, 2)
        return tokens + self.positions.unsqueeze(0)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer over these numbers, which may be a part of a larger matrix."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


@dataclass(frozen=True)
class TextEncoderParts:
    """The modules of a text encoder.

    Attributes:
        positions: Rows of the tokens [1, S, C] -> hidden [1, S, C].
        layers: hidden -> hidden, each.
        head: hidden, and i32 [1], the token to read, where it reads one -> embedding [1, E].
        table: Rows of the tokens [V, C].
    """

    positions: nn.Module
    layers: tuple[nn.Module, ...]
    head: nn.Module
    table: Tensor

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All of them in the order in which they run; a block's `span` counts in it."""
        return (self.positions, *self.layers, self.head)


@dataclass(frozen=True)
class EmbedderParts:
    """An image encoder and, where there is one, the text encoder that it was trained with."""

    encoder: EncoderParts
    text: TextEncoderParts | None

    @property
    def tables(self) -> dict[str, tuple[Tensor, ...]]:
        """The matrices of each table of the host, by its name."""
        return {"embedding": (self.text.table,)} if self.text else {}
