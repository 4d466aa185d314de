"""Static layers of T5's and UMT5's encoders (arXiv 1910.10683, 2304.09151) over transformers' own.

    positions as a bias made of the length     -> numbers of buckets are constants, a matrix of
                                                  numbers of the checkpoint is looked up    T5Layer
    a mask of padding                          -> added to the scores, finite
    scores that are not scaled                 -> queries times the root of the head size

UMT5 has a table of the bias in each layer, T5 in the first one alone, which all layers share; here
every layer looks it up, so a block needs no other one. Rows of padding are zero at the end, as
diffusers' pipelines leave them. Shapes: S tokens, Ct channels, H heads of D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.ops import attention

HIDDEN = -1e4  # hides a token in scores, in float16 too


class T5Layer(nn.Module):
    """A layer: hidden [1, S, Ct], mask [1, S] of 1 and 0 -> hidden.

    Args:
        block: transformers' layer.
        table: Bias of each bucket and head, [buckets, H].
        buckets: Number of the bucket of each distance from 1 - S to S, i32 [2 S].
        norm: The encoder's last norm, of the last layer; None of the others.
    """

    buckets: Tensor

    def __init__(
        self, block: Any, table: nn.Embedding, buckets: Tensor, norm: nn.Module | None
    ) -> None:
        super().__init__()
        (self_attention, feed) = block.layer
        attn, self.attn_norm = self_attention.SelfAttention, self_attention.layer_norm
        self.q, self.k, self.v, self.o = attn.q, attn.k, attn.v, attn.o
        self.heads, self.size = attn.n_heads, attn.key_value_proj_dim
        self.feed, self.feed_norm = feed.DenseReluDense, feed.layer_norm
        self.table, self.norm = table, norm
        self.register_buffer("buckets", buckets)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        bias = self.bias(hidden.shape[1])
        x = self.attn_norm(hidden)
        query = self.q(x) * self.size**0.5
        scores = bias + ((1 - mask) * HIDDEN)[:, None, None]
        seen = attention(query, self.k(x), self.v(x), self.heads, scores)
        hidden = hidden + self.o(seen)
        hidden = hidden + self.feed(self.feed_norm(hidden))
        if self.norm is not None:
            hidden = self.norm(hidden) * mask.unsqueeze(-1)
        return hidden

    def bias(self, tokens: int) -> Tensor:
        """What is added to the scores of each pair of tokens, [1, H, S, S].

        All pairs of one distance have one number, so a row is the one above it moved on by one:
        2 S numbers, repeated and cut into rows that are one shorter.
        """
        each = self.table.weight.index_select(0, self.buckets).transpose(0, 1)  # [H, 2 S]
        rows = each.unsqueeze(1).expand(-1, tokens, -1).flatten(1)
        rows = rows[:, : tokens * (2 * tokens - 1)].reshape(self.heads, tokens, -1)
        return rows[..., tokens - 1 :].unsqueeze(0)


def encoder_layers(model: Any, tokens: int) -> list[T5Layer]:
    """The layers of `T5EncoderModel` or `UMT5EncoderModel` for texts of S tokens."""
    blocks = model.encoder.block
    first = blocks[0].layer[0].SelfAttention
    apart = torch.arange(1 - tokens, tokens + 1)
    # T5's form takes what UMT5's reads of its layer as arguments.
    if type(first).__name__.startswith("T5"):
        buckets = first._relative_position_bucket(
            apart,
            bidirectional=True,
            num_buckets=first.relative_attention_num_buckets,
            max_distance=first.relative_attention_max_distance,
        )
    else:
        buckets = first._relative_position_bucket(apart)
    last = len(blocks) - 1
    layers = []
    for index, block in enumerate(blocks):
        own = block.layer[0].SelfAttention
        table = own if own.has_relative_attention_bias else first
        norm = model.encoder.final_layer_norm if index == last else None
        layers.append(T5Layer(block, table.relative_attention_bias, buckets.int(), norm))
    return layers
