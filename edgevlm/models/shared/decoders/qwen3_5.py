"""Qwen3.5's decoder: gated delta rule in three of four layers, gated attention in the others.

Attention turns a part of a head, norms queries and keys, and multiplies what it gives by a gate.

Sources: Gated DeltaNet (arXiv 2412.06464); transformers' `models/qwen3_5/modeling_qwen3_5.py`.
"""

from __future__ import annotations

from typing import Any

from edgevlm.bundle.kinds.shared.states import CacheSpec, RecurrentSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import LayerNumbers

KINDS = ("linear_attention", "full_attention")


def numbers(text: Any, layer: int) -> LayerNumbers:
    """What a layer computes beside Llama's."""
    return LayerNumbers(norm_offset=1.0, head_norms=True, gated=True)


def cache(text: Any, layer: int, rows: CacheSpec) -> CacheSpec | RecurrentSpec:
    """What a layer keeps: of a recurrent one rows of its convolution, and a matrix a head.

    Raises:
        PlanError: For a layer of another kind, or heads that do not divide.
    """
    kind, keys, values = text.layer_types[layer], *_heads(text)
    if kind == KINDS[1]:
        return rows
    if kind != KINDS[0]:
        raise PlanError(f"layer type '{kind}' is not supported, only {' and '.join(KINDS)} are")
    if values % keys:
        raise PlanError(f"{values} value heads do not divide by {keys} key heads")
    if text.linear_conv_kernel_dim < 2:
        width = text.linear_conv_kernel_dim
        raise PlanError(f"linear_conv_kernel_dim is {width}, expected 2 or more")
    sizes = text.linear_key_head_dim, text.linear_value_head_dim
    channels = 2 * keys * sizes[0] + values * sizes[1]
    return RecurrentSpec(((1, text.linear_conv_kernel_dim - 1, channels), (1, values, *sizes)))


def _heads(text: Any) -> tuple[int, int]:
    return text.linear_num_key_heads, text.linear_num_value_heads
