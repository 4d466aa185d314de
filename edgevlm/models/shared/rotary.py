"""Rotary tables of language models, from transformers' text config: one, or one a kind of layer."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import Any

import torch

from edgevlm.bundle.host import Rope
from edgevlm.errors import PlanError

# Scalings of the rotary tables that are the same at every length.
STATIC_ROPES = ("default", "linear", "llama3", "yarn", "proportional")


def of_layers(text: Any, which: int | str) -> Any:
    """The text config of one layer, or of those of a type, where their sizes differ."""
    each = getattr(text, "per_layer_config", None)
    return text if each is None else each[which]


def ropes(
    text: Any, sections: tuple[int, ...] = (), interleaved: bool = False, partial: bool = False
) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
    """The tables, in the order in which layers first use them, and which each layer has.

    Args:
        text: transformers' text config.
        sections: Frequencies that turn by each axis of a position, where its positions have axes
            and the config says nothing of them.
        interleaved: Whether the frequencies of the axes alternate.
        partial: Whether a part of a head turns, as large as the config says.

    Raises:
        PlanError: If one changes with the length, or has no numbers.
    """
    layers, known = text.num_hidden_layers, text.rope_parameters
    if "rope_type" in known:
        rope = _table(text, known, None, partial)
        if sections:
            own = _checked(rope, known.get("mrope_section", sections), len(sections))
            rope = replace(rope, sections=own, interleaved=interleaved)
        return (rope,), (0,) * layers
    kinds = text.layer_types[:layers]
    order = list(dict.fromkeys(kinds))
    tables = tuple(_table(of_layers(text, kind), known[kind], kind) for kind in order)
    return tables, tuple(order.index(kind) for kind in kinds)


def _checked(rope: Rope, sections: Any, axes: int) -> tuple[int, ...]:
    """The sections of a table, for positions of so many axes.

    Raises:
        PlanError: If they do not make its frequencies.
    """
    count = len(rope.inverse_frequencies)
    good = isinstance(sections, list | tuple) and len(sections) == axes
    good = good and all(type(size) is int and size > 0 for size in sections)
    if not good or sum(sections) != count:
        said = list(sections) if isinstance(sections, tuple) else sections
        raise PlanError(
            f"mrope_section {said!r} does not make the {count} frequencies of a head, expected"
            f" {axes} whole numbers; correct it in config.json"
        )
    return tuple(sections)


def _table(text: Any, parameters: dict[str, Any], kind: str | None, partial: bool = False) -> Rope:
    """The table of all layers, or of those of a kind."""
    # Imported here: transformers is heavy, and reading a family's name needs none of it.
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding

    scaling = parameters["rope_type"]
    if scaling not in STATIC_ROPES:
        raise PlanError(f"rotary scaling '{scaling}' changes with the length; it cannot be static")
    alike = Qwen3_5TextRotaryEmbedding if partial else LlamaRotaryEmbedding
    own = alike if kind is None else Gemma3RotaryEmbedding
    default = own.compute_default_rope_parameters
    compute = default if scaling == "default" else ROPE_INIT_FUNCTIONS[scaling]
    options = {} if kind is None else {"layer_type": kind}
    for key, value in parameters.items():
        values = value if isinstance(value, list | tuple) else [value]
        if not all(isfinite(number) for number in values if isinstance(number, float)):
            raise PlanError(f"{key} of rope_parameters is {value}, expected a finite number")
    frequencies, factor = compute(text, device=torch.device("cpu"), **options)
    if not frequencies.isfinite().all():
        raise PlanError(
            "the rotary frequencies of config.json are not finite: rope_theta is"
            f" {parameters.get('rope_theta')}, expected a number above 0"
        )
    return Rope(tuple(map(float, frequencies)), float(factor))
