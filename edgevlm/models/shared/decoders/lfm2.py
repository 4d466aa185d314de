"""LFM2's decoder layers: short convolutions, and attention as `graphs.layers.DecoderLayer` has it.

Source: LFM2 technical report (arXiv 2511.23404), transformers' `models/lfm2/modeling_lfm2.py`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from edgevlm.bundle.kinds.shared.states import CacheSpec, RecurrentSpec
from edgevlm.errors import PlanError


def cache(text: Any, layer: int, rows: CacheSpec) -> CacheSpec | RecurrentSpec:
    """What a layer keeps: of a convolution what its next taps read.

    Raises:
        PlanError: If a convolution reads no token but its own.
    """
    if text.layer_types[layer] != "conv":
        return rows
    if text.conv_L_cache < 2:
        raise PlanError(f"conv_L_cache is {text.conv_L_cache}, expected 2 or more")
    return RecurrentSpec(((1, text.conv_L_cache - 1, text.hidden_size),))


class Layer(nn.Module):
    """The modules of transformers' layer with attention under Llama's names."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(layer.self_attn), layer.feed_forward
        self.input_layernorm = layer.operator_norm
        self.post_attention_layernorm = layer.ffn_norm


class Attention(nn.Module):
    """The four matrices of attention, and the norms of queries and keys."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.out_proj
        self.q_norm, self.k_norm = attention.q_layernorm, attention.k_layernorm
