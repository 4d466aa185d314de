"""What a checkpoint's folder must have, from the names of its files and config.json alone.

Refused in one line each: adapters, quantized weights, GGUF, pickles, other layouts. A folder of
config and tokenizer without any weights passes, as a plan needs no more.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from edgevlm.errors import ModelError, unknown_name
from edgevlm.models.documents import read_json
from edgevlm.models.weights.headers import INDEX, SINGLE
from edgevlm.registry import FAMILIES

# Keys of a config whose weights are quantized: transformers', compressed-tensors' and MLX's.
QUANTIZED = ("quantization_config", "compression_config", "quantization")
PICKLES = (".bin", ".pt", ".pth")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def checked_config(folder: Path, files: list[str]) -> dict[str, Any]:
    """config.json of a folder with the files of a checkpoint; its model_type is a family.

    Raises:
        ModelError: Saying what is wrong and what to do, without the model's name.
    """
    _check_no_adapter(folder, files)
    if "config.json" not in files:
        raise ModelError(lacks(files))
    document = read_json(folder / "config.json")
    name = str(document.get("model_type"))
    try:
        family = family_of(name)
    except ModelError as cause:
        code = " (it brings code of its own, auto_map, which is not run)" * ("auto_map" in document)
        raise ModelError(f"{cause}{code}") from cause
    _check_plain_config(document)
    if not {SINGLE, INDEX}.intersection(files) and any(map(_is_weights, files)):
        raise ModelError(lacks(files))
    if "tokenizer.json" not in files and getattr(family, "WORDS", True):
        raise ModelError("it has no tokenizer.json; save a fast tokenizer into the folder")
    return document


def family_of(model_type: str) -> ModuleType:
    """The family of a model type: its file, or the generic path where transformers has such a VLM.

    Raises:
        ModelError: If there is neither.
        RuntimeLoadError: If a library that it needs is missing.
    """
    names = FAMILIES.names()
    if model_type in names:
        return FAMILIES.load(model_type)
    # Imported here: transformers is heavy, and the generic path needs what reads this module.
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ModelError(
            f"{unknown_name('model family', model_type, names)}; transformers has no such"
            " image-text-to-text model either, so the generic path cannot try it"
        )
    return importlib.import_module("edgevlm.models.generic.family")


def auto_class(family: ModuleType, config: Any) -> str:
    """The class of transformers that builds a family's model of a config."""
    of = getattr(family, "auto_class", None)
    return str(family.AUTO_CLASS if of is None else of(config))


def _is_weights(name: str) -> bool:
    """Whether a file has weights, in whatever format."""
    return name.endswith((".safetensors", ".gguf", *PICKLES))


def lacks(files: list[str]) -> str:
    """What to do about a folder of these files, which is no checkpoint with weights."""
    if gguf := [name for name in files if name.endswith(".gguf")]:
        return (
            f"'{gguf[0]}' is GGUF, which is not read; use the safetensors checkpoint that it was"
            " made from, and --quantize"
        )
    if "config.json" not in files:
        return "it has no config.json; expected a Hugging Face checkpoint folder"
    if others := [name for name in files if name.endswith(".safetensors")]:
        return (
            f"it has neither {SINGLE} nor {INDEX}, only {others[0]}; save it with transformers'"
            " save_pretrained"
        )
    if pickles := [name for name in files if name.endswith(PICKLES)]:
        return (
            f"it has no {SINGLE}, only {pickles[0]}; convert it with transformers' save_pretrained"
            " (pickles are not read)"
        )
    return (
        f"it has no weights, which a plan does without and nothing else; put {SINGLE} into the"
        " folder, or name the repository that has it"
    )


def _check_plain_config(document: dict[str, Any]) -> None:
    """Refuse a config of quantized weights, of whatever library.

    Raises:
        ModelError: Naming the key and the method.
    """
    for key, value in document.items():
        if key in QUANTIZED and value:
            numbers = value if isinstance(value, dict) else {}
            method = numbers.get("quant_method") or numbers.get("quant_type")
            named = f", {method}" * isinstance(method, str)
            raise ModelError(
                f"its weights are quantized ({key} in config.json{named}); use the checkpoint that"
                " it was made from, and --quantize"
            )
        if isinstance(value, dict):
            _check_plain_config(value)


def _check_no_adapter(folder: Path, files: list[str]) -> None:
    """Refuse an adapter beside the weights, or alone.

    Raises:
        ModelError: Saying how to merge it.
    """
    if not set(ADAPTERS).intersection(files):
        return
    merge = "merge it with PEFT's merge_and_unload() and save the model"
    if "config.json" in files and {SINGLE, INDEX}.intersection(files):
        raise ModelError(
            f"it has an adapter that is not merged into its weights (adapter_config.json); {merge},"
            " or move the adapter's files away to export the model without it"
        )
    base = None
    if (folder / ADAPTERS[0]).is_file():
        base = read_json(folder / ADAPTERS[0]).get("base_model_name_or_path")
    of = f" of '{base}'" if isinstance(base, str) and base else ""
    raise ModelError(f"it is an adapter alone{of}, not a model; {merge}")
