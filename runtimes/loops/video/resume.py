"""What an interrupted video goes on from: latents after each step, beside the video's file.

The file is safetensors-free numpy (`allow_pickle=False`), written beside and renamed, so a killed
run leaves the state of its last whole step. It names what it belongs to; latents of another
prompt, seed, bundle or schedule are refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle.writing import write_bytes
from edgevlm.errors import InputError
from edgevlm.libraries import first_line
from edgevlm.runtimes.arrays import Array

MOST_BYTES = 2**32


def state_path(output: Path) -> Path:
    """Where the state of a video is kept until it is written."""
    return output.with_name(f"{output.name}.steps.npz")


def check_state(output: Path, given_up: bool) -> None:
    """Refuse to begin a video again whose steps are kept.

    Raises:
        InputError: If they are there and not `given_up`.
    """
    path = state_path(output)
    if path.is_file() and not given_up:
        raise InputError(
            f"'{path}' has steps of an interrupted video; add --resume to go on with it, or --force"
            " to begin again"
        )


def identity(parts: Mapping[str, object]) -> str:
    """A text that is equal for runs that make one video."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def save(path: Path, of: str, step: int, arrays: Mapping[str, Array]) -> None:
    """Keep the state after a step.

    Raises:
        InputError: If it cannot be written.
    """
    data = io.BytesIO()
    named: dict[str, Any] = {"of": np.array(of), "step": np.array(step), **arrays}
    np.savez(data, **named)
    write_bytes(path, data.getvalue())


def load(path: Path, of: str, shape: tuple[int, ...]) -> tuple[int, dict[str, Array]]:
    """Steps that are done, and their arrays f32 by name.

    Args:
        path: The state's file.
        of: `identity` of this run.
        shape: Of its `latents`.

    Raises:
        InputError: If there is none, it is of another video, or damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no '{path}' to resume from; leave out --resume")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"'{path}' is too large for the latents of a video")
    try:
        _check_stored(path)
        with np.load(path, allow_pickle=False) as state:
            if str(state["of"]) != of:
                raise InputError(
                    f"'{path}' belongs to another video (bundle, prompt, negative, seed, guidance"
                    " or rules); give the same options, or leave out --resume"
                )
            names = [name for name in state.files if name not in ("of", "step")]
            arrays = {name: np.asarray(state[name], np.float32) for name in names}
            step = int(state["step"])
    except InputError:
        raise
    except Exception as cause:  # numpy and zipfile raise anything
        raise InputError(f"'{path}' is damaged: {first_line(cause)}; leave out --resume") from cause
    good = "latents" in arrays and arrays["latents"].shape == shape
    if not good or not all(np.isfinite(array).all() for array in arrays.values()):
        raise InputError(f"'{path}' has no latents of this video; leave out --resume")
    return step, arrays


def _check_stored(path: Path) -> None:
    """Refuse members that take more memory than the file has bytes.

    Raises:
        ValueError: If one is compressed or encrypted.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise ValueError(f"'{member.filename[:60]}' is compressed or encrypted")
