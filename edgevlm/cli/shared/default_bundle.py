"""The default bundle of `run`: the embedded model, exported once."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import edgevlm
from edgevlm.bundle.cache import alone, cache_folder, made_cache_folder
from edgevlm.bundle.documents import dumps
from edgevlm.bundle.files import is_sound
from edgevlm.cli.shared.output import progress, say
from edgevlm.libraries import require_torch
from edgevlm.recipe import Recipe

RECIPE = Recipe(tokens=98)


def default_bundle() -> Path:
    """Path of the default bundle, exported at first use."""
    weights = Path(edgevlm.__file__).parent / "embedded" / "model.safetensors"
    identity = edgevlm.__version__ + dumps(RECIPE) + str(weights.stat().st_size)
    digest = hashlib.sha256(identity.encode() + weights.read_bytes()).hexdigest()[:12]
    path = cache_folder() / f"embedded-{digest}.edgevlm"
    if not is_sound(path):
        require_torch()
        with alone(path.stem, lambda: say("waiting for another edgevlm, which exports it")):
            if not is_sound(path):  # missing, or damaged in the cache
                _export(path)
    return path


def _export(path: Path) -> None:
    from edgevlm.pipeline import export

    say(f"exporting the embedded model, once, to {path}")
    made_cache_folder()
    shutil.rmtree(path, ignore_errors=True)
    with progress() as step:
        export(RECIPE, path, progress=step)
