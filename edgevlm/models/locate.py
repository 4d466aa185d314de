"""Where the files of a checkpoint are: in a folder, in this package, or on a hub."""

from __future__ import annotations

import os
from pathlib import Path

from edgevlm.errors import ModelError
from edgevlm.models.folder import lacks
from edgevlm.models.hub import fetch_small
from edgevlm.models.weights.sources import FolderWeights, Weights

EMBEDDED = "embedded"


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
