"""A model of transformers from a checkpoint's config, empty or with its weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import transformers
from safetensors import safe_open

from edgevlm.errors import ModelError, PlanError
from edgevlm.libraries import first_line
from edgevlm.models.quiet import quiet
from edgevlm.models.weights.matching import Match
from edgevlm.models.weights.paging import FileWeight, Kept, replace_parameters
from edgevlm.models.weights.sources import FolderWeights, numbers

# In names of what a text config may say of each layer.
EACH_LAYER = ("layer", "intermediate_size", "activation_sparsity")


def built(auto_class: str, config: Any) -> Any:
    """The model of a config on the meta device.

    Args:
        auto_class: What builds it, a class of transformers.
        config: Its config.

    Raises:
        ModelError: If the config describes no model.
    """
    built_by = getattr(transformers, auto_class)
    # A class of one model has another name for it.
    make = getattr(built_by, "from_config", None) or built_by._from_config
    try:
        with quiet(), torch.device("meta"):
            return make(config, dtype=torch.float32)
    except Exception as cause:  # sizes that do not go together raise anything
        raise ModelError(f"config.json makes no model: {first_line(cause)}") from cause


def untied(config: Any) -> Any:
    """The same config for files whose head is not their table, whatever it says."""
    config = copy.deepcopy(config)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    return config


def cut(config: Any, layers: int) -> Any:
    """The same config with the first layers of the language model alone.

    Raises:
        PlanError: If it has fewer.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    depth = text.num_hidden_layers
    if layers > depth:
        raise PlanError(f"layers is {layers}, and the language model has {depth}; give fewer")
    for name, value in vars(text).items():
        each = any(word in name for word in EACH_LAYER)
        if each and isinstance(value, list | tuple) and len(value) == depth:
            setattr(text, name, value[:layers])
    shared = getattr(text, "num_kv_shared_layers", None)
    if shared:  # these are the last ones
        text.num_kv_shared_layers = max(0, layers - (depth - shared))
    text.num_hidden_layers = layers
    return config


def paged(found: Match, weights: FolderWeights, tied: bool, kept_bytes: int) -> Any | None:
    """The model with weights that stay in their files (`paging`).

    Args:
        found: The model with stand-ins, and which tensor each weight gets.
        weights: The files.
        tied: Whether the tensors `found.both` of table and head are one.
        kept_bytes: Bytes of float32 that stay in memory once they were read.

    Returns:
        The model; None where transformers computes its weights from the tensors.
    """
    # Imported here: heavy, and a checkpoint that is refused needs none of it.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    if any(isinstance(c, WeightConverter) for c in get_model_conversion_mapping(found.model)):
        return None
    kept, same = Kept(kept_bytes), dict[str, str]()
    if found.both and tied:
        same = {found.both[1]: found.both[0]}
    of_tensor = {
        name: FileWeight.of(weights, found.headers[name], kept)
        for name in set(found.sources.values())
    }
    replace_parameters(
        found.model, {name: of_tensor[same.get(t, t)] for name, t in found.sources.items()}
    )
    for name, tensor in found.statistics.items():
        values = FileWeight.of(weights, found.headers[tensor], kept).read()
        owner, _, own_name = name.rpartition(".")
        kind = found.model.get_buffer(name).dtype
        found.model.get_submodule(owner).register_buffer(own_name, values.to(kind))
    return found.model.eval().requires_grad_(False)


def loaded(found: Match, config: Any, weights: FolderWeights) -> Any:
    """The model with float32 weights.

    Each tensor is read when it is its turn: of a mapped file, all pages would stay in memory
    until the last one is.

    Args:
        found: Whose class the model is of, and the tensors as it takes them.
        config: Its config.
        weights: The files.

    Raises:
        ModelError: If a file cannot be read.
    """
    try:
        with quiet():
            tensors: dict[str, Any] = {}
            for path in weights.paths:
                file: Any = safe_open(path, "pt", backend="pread")
                tensors |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors |= {
                name: numbers(weights, header, 0, math.prod(header.shape)).view(header.shape)
                for name, header in found.headers.items()
                if header != weights.headers[name]  # a part of it
            }
            kind: Any = type(found.model)
            model = kind.from_pretrained(
                None, config=config, state_dict=tensors, dtype=torch.float32
            )
    except Exception as cause:
        raise ModelError(f"it cannot be loaded: {first_line(cause)}") from cause
    return model.eval().requires_grad_(False)
