"""GLM's decoder layers as `graphs.layers.DecoderLayer` takes them.

Rewrite, exact: GLM turns neighbours of a head, 0 and 1, 2 and 3, where a layer here turns numbers
that are half a head apart. Queries and keys are used in products with each other alone, so that the
rows of their matrices may stand in another order: even ones first.

Source: transformers' `models/glm_ocr/modeling_glm_ocr.py`. Limits: all of a head turns. The two
matrices of each layer are copies in memory.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from edgevlm.errors import PlanError
from edgevlm.graphs.layers import LayerNumbers


def numbers(text: Any, layer: int) -> LayerNumbers:
    """What a layer computes.

    Raises:
        PlanError: If a part of a head turns.
    """
    part = text.rope_parameters.get("partial_rotary_factor", 1.0)
    if part != 1:
        raise PlanError(f"partial_rotary_factor {part} of GLM is not supported, only 1 is")
    return LayerNumbers(added_norms=True)


class Layer(nn.Module):
    """The modules of transformers' layer under the names of a layer with added norms."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(layer.self_attn), layer.mlp
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_self_attn_layernorm
        self.pre_feedforward_layernorm = layer.post_attention_layernorm
        self.post_feedforward_layernorm = layer.post_mlp_layernorm


class Attention(nn.Module):
    """The four matrices of attention."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        size = attention.head_dim
        self.q_proj, self.k_proj = (
            _even_first(m, size) for m in (attention.q_proj, attention.k_proj)
        )
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj


def _even_first(matrix: Any, head_size: int) -> nn.Linear:
    """A matrix whose rows, head by head, are the even ones and then the odd ones."""
    rows, columns = matrix.weight.shape
    by_pair = matrix.weight.detach().reshape(-1, head_size // 2, 2, columns)
    made = nn.Linear(columns, rows, bias=False, device="meta")
    ordered = by_pair.transpose(1, 2).reshape(rows, columns)
    made.weight = nn.Parameter(ordered, requires_grad=False)
    return made
