"""A model of transformers from a checkpoint's config, empty or with its weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from safetensors import safe_open

from edgevlm.errors import ModelError
from edgevlm.libraries import first_line
from edgevlm.models.quiet import quiet
from edgevlm.models.weights.sources import FolderWeights


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


def loaded(kind: Any, config: Any, weights: FolderWeights) -> Any:
    """The model with float32 weights.

    Each tensor is read when it is its turn: of a mapped file, all pages would stay in memory
    until the last one is.

    Raises:
        ModelError: If a file cannot be read.
    """
    try:
        with quiet():
            tensors: dict[str, Any] = {}
            for path in weights.paths:
                file: Any = safe_open(path, "pt", backend="pread")
                tensors |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            model = kind.from_pretrained(
                None, config=config, state_dict=tensors, dtype=torch.float32
            )
    except Exception as cause:
        raise ModelError(f"it cannot be loaded: {first_line(cause)}") from cause
    return model.eval().requires_grad_(False)
