"""Language decoders of Llama's kin: numbers and modules; `DECODERS` lists them.

`graphs.layers.DecoderLayer` computes their layers. What one does beside Llama is a number in
`LayerNumbers`, read from the config here and nowhere else.

Sources: Llama (arXiv 2302.13971), Mistral (arXiv 2310.06825), Qwen2 (arXiv 2407.10671), Qwen3
(arXiv 2505.09388, section 2: norms of queries and keys), their forms in Qwen2.5-VL and Qwen3-VL
(M-RoPE: arXiv 2409.12191, section 2.1), Granite (factors as in muP, arXiv
2203.03466), SmolLM3 (layers without positions, arXiv 2501.18795), Gemma
(arXiv 2403.08295).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch

from edgevlm.bundle.host import Rope
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import DecoderLayer, FinalNorm, LayerNumbers
from edgevlm.graphs.parts import CacheSpec, DecoderParts, DecoderSpec

# Scalings of the rotary tables that are the same at every length.
STATIC_ROPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class LanguageModel:
    """What a language model of transformers does beside Llama.

    Attributes:
        windowed: Whether its masks read a window whatever the config says of single layers.
        sections: Frequencies that turn by each axis of a position, where its positions have axes
            and the config says nothing of them.
        interleaved: Whether the frequencies of the axes alternate.
        table_scale: Its config -> factor of a row of its embedding table.
        numbers: Its config and a layer's index -> what that layer computes.
    """

    windowed: bool = False
    sections: tuple[int, ...] = ()
    interleaved: bool = False
    table_scale: Callable[[Any], float] = lambda text: 1.0
    numbers: Callable[[Any, int], LayerNumbers] = lambda text, layer: LayerNumbers()


def _granite(text: Any, layer: int) -> LayerNumbers:
    """Granite's factors. Its `logits_scaling` is for its own head, which no family here has."""
    return LayerNumbers(
        # Of all rows, visual ones too: the original multiplies what enters its first layer.
        input_scale=1.0 if layer else float(text.embedding_multiplier),
        query_scale=float(text.attention_multiplier) * sqrt(_head_size(text)),
        residual_scale=float(text.residual_multiplier),
    )


def _smollm3(text: Any, layer: int) -> LayerNumbers:
    turned = text.no_rope_layers  # 1 where a layer does rotate
    if len(turned) < text.num_hidden_layers:
        raise PlanError(
            f"no_rope_layers has {len(turned)} numbers for {text.num_hidden_layers} layers;"
            " give one a layer"
        )
    return LayerNumbers(rotary=bool(turned[layer]))


def _gemma(text: Any, layer: int) -> LayerNumbers:
    if text.use_bidirectional_attention:
        raise PlanError("use_bidirectional_attention is not supported, only causal attention is")
    return LayerNumbers(norm_offset=1.0)


DECODERS = {
    "llama": LanguageModel(),
    "mistral": LanguageModel(windowed=True),
    "qwen2": LanguageModel(),
    "qwen3": LanguageModel(numbers=lambda text, layer: LayerNumbers(head_norms=True)),
    "qwen2_5_vl_text": LanguageModel(sections=(16, 24, 24)),
    "qwen3_vl_text": LanguageModel(
        sections=(24, 20, 20),
        interleaved=True,
        numbers=lambda text, layer: LayerNumbers(head_norms=True),
    ),
    "granite": LanguageModel(numbers=_granite),
    "smollm3": LanguageModel(numbers=_smollm3),
    "gemma": LanguageModel(table_scale=lambda text: sqrt(text.hidden_size), numbers=_gemma),
}


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
    head_size = _head_size(text)
    rope = _rope(text)
    if 2 * len(rope.inverse_frequencies) != head_size:
        raise PlanError(
            f"rotary tables of {2 * len(rope.inverse_frequencies)} of {head_size} numbers of a head"
            " are not supported, only of all"
        )
    layers, model = range(text.num_hidden_layers), DECODERS[text.model_type]
    return DecoderSpec(
        width=text.hidden_size,
        caches=(CacheSpec(groups, head_size),) * len(layers),
        layers=tuple(model.numbers(text, layer) for layer in layers),
        rope=rope,
        table_scale=model.table_scale(text),
        max_positions=text.max_position_embeddings,
        window=_window(text),
    )


def decoder_parts(language_model: Any, spec: DecoderSpec) -> DecoderParts:
    """Static modules over the weights of transformers' text model."""
    heads = language_model.config.num_attention_heads
    return DecoderParts(
        spec=spec,
        layers=tuple(
            DecoderLayer(layer, heads, cache.heads, numbers)
            for layer, cache, numbers in zip(
                language_model.layers, spec.caches, spec.layers, strict=True
            )
        ),
        norm=FinalNorm(language_model.norm, spec.layers[-1].norm_offset),
        language_model=language_model,
    )


def _head_size(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _window(text: Any) -> int | None:
    """The fewest rows that a token of any layer sees, or None.

    Masks and transformers' cache read them apart: the cache drops rows of a Llama, too, whose
    config names a window.
    """
    kinds, windowed = getattr(text, "layer_types", None), DECODERS[text.model_type].windowed
    limited = windowed or kinds is None or set(kinds) != {"full_attention"}
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
    model = DECODERS[text.model_type]
    sections = tuple(text.rope_parameters.get("mrope_section") or ()) if model.sections else ()
    sections = sections or model.sections
    if sections and (sum(sections) != len(frequencies) or min(sections) < 1):
        raise PlanError(
            f"mrope_section {list(sections)} does not make the {len(frequencies)} frequencies of a"
            " head; correct it in config.json"
        )
    return Rope(tuple(map(float, frequencies)), float(scaling), sections, model.interleaved)
