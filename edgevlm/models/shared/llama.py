"""Language decoders of Llama's kin: numbers and modules; `DECODERS` lists them.

`graphs.layers.DecoderLayer` computes their layers. What one does beside Llama is a number in
`LayerNumbers`, read from the config here and nowhere else.

Sources: Llama (arXiv 2302.13971), Mistral (arXiv 2310.06825), Ministral 3 (its queries' scale is
that of Llama 4, transformers' `models/ministral3/modeling_ministral3.py`), Qwen2 (arXiv
2407.10671), Qwen3 (arXiv 2505.09388, section 2: norms of queries and keys), their forms in
Qwen2.5-VL and Qwen3-VL (M-RoPE: arXiv 2409.12191, section 2.1), Ernie 4.5 in PaddleOCR-VL and GLM
in GLM-OCR with M-RoPE too, Granite (factors as in muP, arXiv 2203.03466), SmolLM3 (layers without
positions, arXiv 2501.18795), Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118, section 2), Gemma
3 (arXiv 2503.19786, section 2), LFM2 (arXiv 2511.23404), Qwen3.5 (Gated DeltaNet, arXiv
2412.06464).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from torch import nn

from edgevlm.bundle.host import LayerRows
from edgevlm.bundle.kinds.shared.states import CacheSpec, RecurrentSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import DecoderLayer, FinalNorm, LayerNumbers
from edgevlm.graphs.parts import DecoderParts, DecoderSpec
from edgevlm.graphs.recurrent.delta import DeltaLayer
from edgevlm.graphs.recurrent.short_convolution import ShortConvolutionLayer
from edgevlm.models.shared.decoders import altup, glm, lfm2, qwen3_5
from edgevlm.models.shared.decoders.gated import GatedLayer, gemma4_numbers, layer_rows
from edgevlm.models.shared.rotary import of_layers, ropes


def _attending(layer: Any, heads: int, cache: CacheSpec, numbers: LayerNumbers) -> nn.Module:
    return DecoderLayer(layer, heads, cache.heads, numbers)


@dataclass(frozen=True)
class LanguageModel:
    """What a language model of transformers does beside Llama.

    Attributes:
        windows: Which layers have masks that read `sliding_window`: `all`, those whose type in
            `layer_types` says so (`typed`), or none (empty).
        sections: Frequencies that turn by each axis of a position, where its positions have axes
            and the config says nothing of them.
        interleaved: Whether the frequencies of the axes alternate.
        partial: Whether a part of a head turns, as large as its config says.
        both_ways: Layers whose tokens see later ones where a mask of the family shows them: `all`,
            or `windows`, those that have one.
        table_scale: Its config -> factor of a row of its embedding table.
        layer_rows: Its config -> numbers of its second table; None where it has none.
        positions: Its config -> the most positions that it computes as the layers here do.
        beyond: What it does at more, where its config has more.
        numbers: Its config and a layer's index -> what that layer computes, windows and rotary
            tables left out.
        named: Its layer -> the same with Llama's names.
        cache: Its config, a layer's index and the KV cache of a layer -> what that layer keeps.
        attending: Its layer with keys and values, its query heads, cache and numbers -> our module.
        recurrent: Its layer without keys and values -> our module.
        norm: Its attribute with the norm after the layers.
        streams: Its config -> copies of a row that go from layer to layer.
    """

    windows: str = ""
    sections: tuple[int, ...] = ()
    interleaved: bool = False
    partial: bool = False
    both_ways: str = "all"
    table_scale: Callable[[Any], float] = lambda text: 1.0
    layer_rows: Callable[[Any], LayerRows | None] = lambda text: None
    positions: Callable[[Any], int] = lambda text: int(text.max_position_embeddings)
    beyond: str = ""
    numbers: Callable[[Any, int], LayerNumbers] = lambda text, layer: LayerNumbers()
    named: Callable[[Any], nn.Module] = lambda layer: layer
    cache: Callable[[Any, int, CacheSpec], CacheSpec | RecurrentSpec] = lambda text, at, rows: rows
    attending: Callable[[Any, int, CacheSpec, LayerNumbers], nn.Module] = _attending
    recurrent: Callable[[Any], nn.Module] = lambda layer: layer
    norm: str = "norm"
    streams: Callable[[Any], int] = lambda text: 1


def _granite(text: Any, layer: int) -> LayerNumbers:
    """Granite's factors, but for the `logits_scaling` of its own head.

    Raises:
        PlanError: If one that a family divides by is 0.
    """
    for name in ("embedding_multiplier", "logits_scaling"):
        if not getattr(text, name):
            raise PlanError(f"{name} is {getattr(text, name)}, expected another; mend config.json")
    return LayerNumbers(
        # Of all rows, visual ones too: the original multiplies what enters its first layer.
        input_scale=1.0 if layer else float(text.embedding_multiplier),
        score_scale=float(text.attention_multiplier) * sqrt(_head_size(text)),
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


def _gemma2(text: Any, layer: int) -> LayerNumbers:
    """Gemma 2; of Gemma 3 transformers reads no softcap, whatever its config says."""
    return LayerNumbers(
        norm_offset=1.0,
        added_norms=True,
        score_scale=sqrt(_head_size(text) / text.query_pre_attn_scalar),
        softcap=float(text.attn_logit_softcapping or 0),
    )


def _gemma3(text: Any, layer: int) -> LayerNumbers:
    return replace(_gemma2(text, layer), softcap=0.0, head_norms=True)


def _root_of_width(text: Any) -> float:
    return sqrt(text.hidden_size)


def _unscaled(text: Any) -> int:
    """Ministral 3 multiplies queries by 1 + beta log(1 + floor(position / original length))."""
    original = text.rope_parameters.get("original_max_position_embeddings")
    most = int(text.max_position_embeddings)
    return min(most, int(original)) if original else most


DECODERS = {
    "llama": LanguageModel(),
    "mistral": LanguageModel("all"),
    "qwen2": LanguageModel("typed"),
    "qwen3": LanguageModel("typed", numbers=lambda text, layer: LayerNumbers(head_norms=True)),
    "ministral3": LanguageModel(
        "all", positions=_unscaled, beyond="multiplies queries by a factor of their position"
    ),
    "qwen2_5_vl_text": LanguageModel("typed", sections=(16, 24, 24)),
    "paddleocr_vl_text": LanguageModel(sections=(16, 24, 24)),
    "glm_ocr_text": LanguageModel(sections=(8, 12, 12), numbers=glm.numbers, named=glm.Layer),
    "qwen3_vl_text": LanguageModel(
        sections=(24, 20, 20),
        interleaved=True,
        numbers=lambda text, layer: LayerNumbers(head_norms=True),
    ),
    "granite": LanguageModel(numbers=_granite),
    "granite_docling_text": LanguageModel(numbers=_granite),
    "granite4_vision_text": LanguageModel(numbers=_granite),
    "smollm3": LanguageModel("typed", numbers=_smollm3),
    "gemma": LanguageModel(
        table_scale=_root_of_width, numbers=lambda text, layer: LayerNumbers(norm_offset=1.0)
    ),
    "gemma2": LanguageModel("typed", table_scale=_root_of_width, numbers=_gemma2),
    "gemma3_text": LanguageModel("typed", table_scale=_root_of_width, numbers=_gemma3),
    "lfm2": LanguageModel(
        numbers=lambda text, layer: LayerNumbers(head_norms=True),
        named=lfm2.Layer,
        cache=lfm2.cache,
        recurrent=ShortConvolutionLayer,
        norm="embedding_norm",
    ),
    "gemma3n_text": LanguageModel(
        "typed",
        table_scale=_root_of_width,
        layer_rows=altup.layer_rows,
        numbers=altup.numbers,
        named=altup.Layer,
        attending=altup.AltUpLayer,
        streams=altup.streams,
    ),
    "gemma4_text": LanguageModel(
        "typed",
        both_ways="windows",
        table_scale=_root_of_width,
        layer_rows=layer_rows,
        numbers=gemma4_numbers,
        attending=GatedLayer,
    ),
    "qwen3_5_text": LanguageModel(
        sections=(11, 11, 10),
        interleaved=True,
        partial=True,
        numbers=qwen3_5.numbers,
        cache=qwen3_5.cache,
        recurrent=DeltaLayer,
    ),
}


def decoder_spec(text: Any, mask: str = "causal", plain: bool = False) -> DecoderSpec:
    """Numbers of a decoder from transformers' text config.

    Args:
        text: The config.
        mask: Who sees whom in a prompt of the family, see `bundle.host.MASKS`.
        plain: Whether positions of the family are the same on all axes, so that one is enough.

    Raises:
        PlanError: If its layers are not known, its rotary tables change with the length or turn a
            part of a head where the model turns all of it, or its heads do not divide.
    """
    if text.model_type not in DECODERS:
        raise PlanError(
            f"language model '{text.model_type}' is not supported, {', '.join(DECODERS)} are;"
            " choose a checkpoint over one of these"
        )
    if mask == "causal" and getattr(text, "use_bidirectional_attention", False):
        raise PlanError("use_bidirectional_attention is not supported, only causal attention is")
    model, caches = DECODERS[text.model_type], _caches(text)
    positions = model.positions(text)
    sections = () if plain else model.sections
    tables, table_of = ropes(text, sections, model.interleaved, model.partial)
    for cache, table in zip(caches, table_of, strict=True):
        size = tables[table].size
        if size > cache.head_size or (size < cache.head_size and not model.partial):
            raise PlanError(
                f"rotary tables of {size} of {cache.head_size} numbers of a head are not supported,"
                " only of all"
            )
    layers = tuple(
        _seeing(
            replace(
                model.numbers(text, layer), table=table_of[layer], window=_layer_window(text, layer)
            ),
            mask,
            model.both_ways,
        )
        for layer in range(text.num_hidden_layers)
    )
    return DecoderSpec(
        width=text.hidden_size,
        caches=tuple(model.cache(text, layer, cache) for layer, cache in enumerate(caches)),
        layers=layers,
        ropes=tables,
        table_scale=model.table_scale(text),
        max_positions=positions,
        window=_cache_window(text),
        mask=mask,
        per_layer=model.layer_rows(text),
        beyond=model.beyond if positions < text.max_position_embeddings else "",
        residual_streams=model.streams(text),
    )


def decoder_parts(language_model: Any, spec: DecoderSpec) -> DecoderParts:
    """Static modules over the weights of transformers' text model."""
    config = language_model.config
    heads, model = config.num_attention_heads, DECODERS[config.model_type]
    return DecoderParts(
        spec=spec,
        layers=tuple(
            model.recurrent(layer)
            if isinstance(cache, RecurrentSpec)
            else model.attending(model.named(layer), heads, cache, numbers)
            for layer, cache, numbers in zip(
                language_model.layers, spec.caches, spec.layers, strict=True
            )
        ),
        norm=FinalNorm(getattr(language_model, model.norm), spec.layers[-1].norm_offset),
        language_model=language_model,
    )


def _caches(text: Any) -> tuple[CacheSpec, ...]:
    """The cache of each layer; the last ones may read that of an earlier layer of their type.

    Raises:
        PlanError: If heads do not divide, or a layer would read a cache that none has.
    """
    heads, count = text.num_attention_heads, text.num_hidden_layers
    own = count - getattr(text, "num_kv_shared_layers", 0)
    caches = []
    for layer in range(count):
        numbers = of_layers(text, layer)
        groups = numbers.num_key_value_heads
        if heads % groups:
            raise PlanError(
                f"{heads} attention heads do not divide by {groups} key and value heads"
            )
        source = None
        if layer >= own:
            like = [i for i in range(own) if text.layer_types[i] == text.layer_types[layer]]
            if not like:
                raise PlanError(
                    f"layer {layer} reads the cache of a layer of its type, and none of the first"
                    f" {own} is; correct num_kv_shared_layers in config.json"
                )
            source = like[-1]
        caches.append(CacheSpec(groups, _head_size(numbers), source))
    return tuple(caches)


def _seeing(numbers: LayerNumbers, mask: str, both_ways: str) -> LayerNumbers:
    """A layer's numbers with whom its tokens see, by the family's mask."""
    if mask == "causal" or (both_ways == "windows" and not numbers.window):
        return replace(numbers, causal=True, own_mask=mask != "causal")
    return replace(numbers, causal=False)


def _head_size(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _layer_window(text: Any, layer: int) -> int:
    """Rows that a token of a layer sees; 0 for all.

    Raises:
        PlanError: If a layer has a window of no rows.
    """
    windows = DECODERS[text.model_type].windows
    typed = windows == "typed" and text.layer_types[layer] == "sliding_attention"
    size = _rows(text, "sliding_window") if typed or windows == "all" else None
    if typed and size is None:
        raise PlanError(f"layer {layer} sees a window, and sliding_window is not in config.json")
    return size or 0


def _cache_window(text: Any) -> int | None:
    """The fewest rows that transformers' cache keeps of any layer whose masks hide none, or None.

    Masks and cache read the config apart: the cache drops rows of a Llama, too, whose config names
    a window.
    """
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and set(kinds) == {"full_attention"}:
        return None
    unmasked = () if DECODERS[text.model_type].windows else ("sliding_window",)
    names = ("attention_chunk_size", *unmasked)
    sizes = (_rows(text, name) for name in names)
    return min((size for size in sizes if size is not None), default=None)


def _rows(text: Any, name: str) -> int | None:
    """Rows of a window that the config names, or None.

    Raises:
        PlanError: If it has none.
    """
    size = getattr(text, name, None)
    if size is not None and (type(size) is not int or size < 1):
        raise PlanError(f"{name} is {size!r}, expected 1 at least; correct config.json")
    return size
