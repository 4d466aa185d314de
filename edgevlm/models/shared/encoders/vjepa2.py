"""Static modules of V-JEPA 2: layers that turn queries and keys by three axes, and its pooler.

A head's first third turns by a token's group of frames, the second by its row, the third by its
column; what is left over does not turn. Two neighbouring numbers are a pair, and the two have
frequencies of their own, as the published weights were trained with: number i of a third of d has
frequency i mod (d / 2), where a pair of RoFormer (arXiv 2104.09864) shares one. The tables are
constants of the grid.

Source: V-JEPA 2 (arXiv 2506.09985), sections 2.1 and 4; transformers' modeling_vjepa2.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.ops import attention
from edgevlm.models.shared.encoders.clips import ClipGrid

UNMERGEABLE = "queries and keys turn by the place of a patch, and a merged patch has none"
THETA = 10_000.0


class ClipTables(nn.Module):
    """Rotary tables cos and sin [1, N, D] of the tokens of a clip.

    Args:
        grid: The patches.
        head_size: D.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: ClipGrid, head_size: int) -> None:
        super().__init__()
        third = 2 * (head_size // 3 // 2)
        with torch.device("cpu"):
            exponents = torch.arange(third // 2) / (third / 2)
            frequencies = (1.0 / THETA**exponents).repeat(2)  # [third]
            sides = (torch.arange(side) for side in (grid.groups, grid.rows, grid.columns))
            places = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).float()
            angles = (places.reshape(grid.patches, 3, 1) * frequencies).flatten(1)
            still = torch.zeros(grid.patches, head_size - 3 * third)
            angles = torch.cat((angles, still), dim=1).unsqueeze(0)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


class VJEPA2Layer(nn.Module):
    """An encoder layer: pre-norm attention and MLP, [1, N, C] with cos, sin [1, N, D] -> [1, N, C].

    Source: arXiv 2506.09985, section 2.1.
    """

    layer: Any
    rotary = True

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        attn: Any = layer.attention
        self.heads, self.head_size = attn.num_attention_heads, attn.attention_head_size

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.finish(x, *self.project(x, cos, sin))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values, each [1, N, H*D]."""
        attn, h = self.layer.attention, self.layer.norm1(x)
        query, key = (turned(part(h), cos, sin) for part in (attn.query, attn.key))
        return query, key, attn.value(h)

    def finish(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The layer's output [1, N, C], from its input and what `project` gave."""
        x = x + self.layer.attention.proj(attention(query, key, value, self.heads))
        fed: Tensor = self.layer.mlp(self.layer.norm2(x))
        return x + fed


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of each head: x [1, N, H*D] by cos, sin [1, N, D] -> same."""
    pairs = x.reshape(x.shape[1], -1, 2)  # [N, H*D / 2, 2]
    swapped = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1)
    heads = x.shape[1], -1, cos.shape[-1]  # [N, H, D]
    first, second = x.reshape(heads), swapped.reshape(heads)
    return (first * cos.transpose(0, 1) + second * sin.transpose(0, 1)).reshape(x.shape)


class AfterNorm(nn.Module):
    """The encoder's last norm before the pooler's first layer: [1, N, C] -> same."""

    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, x: Tensor) -> Tensor:
        given: Tensor = self.layer(self.norm(x))
        return given


class PoolerHead(nn.Module):
    """One learned query attends to all tokens, an MLP, the classifier: [1, N, C] -> [1, E].

    The query is the same for every clip, so its projection is computed here, once.

    Args:
        norm: The encoder's last, where no layer of the pooler has it before; else the identity.
        pooler: transformers' module.
        classifier: [1, C] -> [1, E].
    """

    query: Tensor
    token: Tensor

    def __init__(self, norm: nn.Module, pooler: Any, classifier: nn.Module) -> None:
        super().__init__()
        layer = pooler.cross_attention_layer
        token, inside = pooler.query_tokens.detach(), layer.cross_attn
        project = inside.q_proj
        query = nn.functional.linear(token, project.weight.detach(), project.bias.detach())
        self.register_buffer("query", query)
        self.register_buffer("token", token)
        self.norm, self.before, self.after = norm, layer.layer_norm1, layer.layer_norm2
        self.key, self.value, self.mlp = inside.k_proj, inside.v_proj, layer.mlp
        self.classifier, self.heads = classifier, inside.num_heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(self.norm(x))
        pooled = self.token + attention(self.query, self.key(x), self.value(x), self.heads)
        pooled = pooled + self.mlp(self.after(pooled))
        logits: Tensor = self.classifier(pooled)
        return logits[:, 0]
