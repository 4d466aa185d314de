"""A diffusers pipeline's folder: model_index.json, and a folder for each component.

No class of a checkpoint's choice is imported: a family names the classes that it reads, and an
index that names others is refused. Weights are safetensors alone.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from edgevlm.errors import ModelError, unknown_name
from edgevlm.models.documents import check_config, read_json
from edgevlm.registry import PIPELINES

INDEX = "model_index.json"
# Stems of the weight files, by the library that saves them.
STEMS = {"transformers": "model", "diffusers": "diffusion_pytorch_model"}


def family_of(index: dict[str, Any]) -> tuple[str, ModuleType]:
    """Name and module of the family of a pipeline's index.

    Raises:
        ModelError: If no family has this pipeline.
    """
    pipeline = str(index.get("_class_name"))
    name = pipeline.removesuffix("Pipeline").lower()
    known = {family: PIPELINES.load(family) for family in PIPELINES.names()}
    if name not in known or pipeline != known[name].PIPELINE:
        pipelines = sorted(family.PIPELINE for family in known.values())
        raise ModelError(f"{unknown_name('pipeline', pipeline, pipelines)} ({INDEX})")
    return name, known[name]


def component_config(folder: Path, index: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    """The config of a component, whose class is the family's.

    Args:
        folder: The pipeline's folder.
        index: Its model_index.json.
        name: The component.
        kind: `LIBRARY.CLASS` as the family reads it.

    Raises:
        ModelError: If it is missing, of another class, or its config has no meaning.
    """
    library, _, wanted = kind.partition(".")
    entry = index.get(name)
    if entry != [library, wanted]:
        shown = ".".join(map(str, entry)) if isinstance(entry, list) else str(entry)
        raise ModelError(f"{INDEX}: {name} is {shown[:80]}, expected {kind}")
    path = folder / name / "config.json"
    if not path.is_file():
        raise ModelError(f"it has no {name}/config.json; save the whole pipeline into the folder")
    document = read_json(path)
    check_config(document, f"{name}/config.json")
    return document
