"""Find a checkpoint by its name: of transformers, or a pipeline of diffusers."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import AutoConfig

from edgevlm.errors import ModelError
from edgevlm.libraries import first_line
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.documents import check_config, of_checkpoint
from edgevlm.models.folder import checked_config, family_of, lacks
from edgevlm.models.hub import fetch_small
from edgevlm.models.pipelines.checkpoint import open_pipeline
from edgevlm.models.pipelines.folder import INDEX as PIPELINE
from edgevlm.models.quiet import quiet
from edgevlm.models.weights.headers import INDEX, SINGLE
from edgevlm.models.weights.sources import FolderWeights, NoWeights, Weights

EMBEDDED = "embedded"


def find(model: str, revision: str | None = None) -> Checkpoint:
    """Resolve `embedded`, a folder or a hub id to a checkpoint folder and check it.

    Raises:
        ModelError: If it is not there, not readable, unsafe or of an unknown family.
    """
    folder, weights, files = locate(model, revision)
    if PIPELINE in files:
        return open_pipeline(model, revision, folder)
    try:
        document = checked_config(folder, files)
    except ModelError as cause:
        raise of_checkpoint(model, cause) from cause
    if not {SINGLE, INDEX}.intersection(files) and not isinstance(weights, NoWeights):
        weights = NoWeights("", lacks(files))
    check_config(document, f"'{model}': config.json")
    name = str(document["model_type"])
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except ImportError as cause:  # of a library for its encoder
        raise ModelError(f"'{model}': {first_line(cause)}") from cause
    except Exception as cause:
        raise ModelError(f"'{model}': config.json is not valid: {first_line(cause)}") from cause
    return Checkpoint(model, revision, folder, config, family_of(name), weights)


def locate(model: str, revision: str | None) -> tuple[Path, Weights, list[str]]:
    """Where the files of a model are, its weights, and the names of all files.

    Raises:
        ModelError: If it is nowhere.
    """
    path = Path(os.path.expanduser(model))  # an unknown ~user stays as it is
    if model == EMBEDDED:
        path = Path(__file__).resolve().parent.parent / "embedded"
    if path.is_dir():
        return path, FolderWeights(path), sorted(each.name for each in path.iterdir())
    if path.is_file():
        if path.suffix == ".gguf":
            raise ModelError(lacks([path.name]))
        raise ModelError(f"'{model}' is a file, expected the folder of a checkpoint")
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or model.endswith("/"):
        raise ModelError(
            f"no model '{model}': expected a folder, a hub id like OWNER/NAME, or '{EMBEDDED}'"
        )
    return fetch_small(model, revision)
