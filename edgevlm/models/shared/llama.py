"""Language decoders of Llama's kin (Llama, Mistral, Qwen2): numbers and modules.

Source: Llama (arXiv 2302.13971); `graphs.layers.DecoderLayer` computes their layers.
"""

from __future__ import annotations

from typing import Any

import torch

from edgevlm.bundle.host import Rope
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import DecoderLayer, FinalNorm
from edgevlm.graphs.parts import CacheSpec, DecoderParts, DecoderSpec

# Scalings of the rotary tables that are the same at every length.
STATIC_ROPES = ("default", "linear", "llama3", "yarn")
# The language models whose layers `DecoderLayer` computes, and whether their masks read a window
# whatever the config says of single layers.
DECODERS = {"llama": False, "mistral": True, "qwen2": False}


def decoder_spec(text: Any) -> DecoderSpec:
    """Numbers of a decoder from transformers' text config.

    Raises:
        PlanError: If its layers are not known, its rotary tables change with the length or turn a
            part of a head, or its heads do not divide.
    """
    if text.model_type not in DECODERS:
        raise PlanError(
            f"language model '{text.model_type}' is not supported, {', '.join(DECODERS)} are;"
            " choose a checkpoint over one of these"
        )
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    if heads % groups:
        raise PlanError(f"{heads} attention heads do not divide by {groups} key and value heads")
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    rope = _rope(text)
    if 2 * len(rope.inverse_frequencies) != head_size:
        raise PlanError(
            f"rotary tables of {2 * len(rope.inverse_frequencies)} of {head_size} numbers of a head"
            " are not supported, only of all"
        )
    return DecoderSpec(
        width=text.hidden_size,
        caches=(CacheSpec(groups, head_size),) * text.num_hidden_layers,
        rope=rope,
        max_positions=text.max_position_embeddings,
        window=_window(text),
    )


def decoder_parts(language_model: Any, spec: DecoderSpec) -> DecoderParts:
    """Static modules over the weights of transformers' text model."""
    heads = language_model.config.num_attention_heads
    return DecoderParts(
        spec=spec,
        layers=tuple(
            DecoderLayer(layer, heads, cache.heads)
            for layer, cache in zip(language_model.layers, spec.caches, strict=True)
        ),
        norm=FinalNorm(language_model.norm),
        language_model=language_model,
    )


def _window(text: Any) -> int | None:
    """The fewest rows that a token of any layer sees, or None.

    Masks and transformers' cache read them apart: the cache drops rows of a Llama, too, whose
    config names a window.
    """
    kinds = getattr(text, "layer_types", None)
    limited = DECODERS[text.model_type] or kinds is None or set(kinds) != {"full_attention"}
    sizes = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((size for size in sizes if size is not None and limited), default=None)


def _rope(text: Any) -> Rope:
    # Imported here: transformers is heavy, and reading a family's name needs none of it.
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    kind = text.rope_parameters["rope_type"]
    if kind not in STATIC_ROPES:
        raise PlanError(f"rotary scaling '{kind}' changes with the length; it cannot be static")
    default = LlamaRotaryEmbedding.compute_default_rope_parameters
    compute = default if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    frequencies, scaling = compute(text, device=torch.device("cpu"))
    if not frequencies.isfinite().all():
        raise PlanError(
            "the rotary frequencies of config.json are not finite: rope_theta is"
            f" {text.rope_parameters.get('rope_theta')}, expected a number above 0"
        )
    return Rope(tuple(float(f) for f in frequencies), float(scaling))
