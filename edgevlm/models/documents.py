"""JSON documents of a checkpoint: read, and refused where their numbers have no meaning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgevlm.bundle.checks import MOST_PIXEL
from edgevlm.bundle.documents import load_json
from edgevlm.errors import ModelError
from edgevlm.libraries import first_line

LIMIT_BYTES = 64 * 10**6

# The largest sizes that a config may have.
SIZES = {
    "depth": 2**10, "head_dim": 2**16, "hidden_size": 2**20, "image_size": 2**16,
    "intermediate_size": 2**20, "max_position_embeddings": 2**24, "num_attention_heads": 2**12,
    "num_heads": 2**12, "num_hidden_layers": 2**10, "num_key_value_heads": 2**12,
    "out_hidden_size": 2**20, "patch_size": 2**16, "scale_factor": 2**10,
    "spatial_merge_size": 2**10, "temporal_patch_size": 2**10, "vocab_size": 2**24,
}  # fmt: skip

# Keys of tokens that stand for images; a family reads them beside the processor's numbers.
IMAGE_TOKENS = ("image_token", "video_token", "fake_image_token", "global_image_token")
POINTER = b"version https://git-lfs"
# What arithmetic over a config raises where a value is of no use.
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the checkpoint.

    Raises:
        ModelError: If the file holds no such object, or a pipe lies beside it.
    """
    _check_kinds(path.parent)
    try:
        check_no_pointer(path)
        document = load_json(path, LIMIT_BYTES)
    except (ValueError, RecursionError, OSError) as cause:
        raise ModelError(f"{path.name} of the checkpoint is not valid JSON: {cause}") from cause
    if not isinstance(document, dict):
        raise ModelError(f"{path.name} of the checkpoint must be a JSON object")
    return document


def check_sizes(document: dict[str, Any], where: str) -> None:
    """Refuse sizes that no model has, before anything is built from them.

    Raises:
        ModelError: Naming the key, its value and the range.
    """
    for key, value in document.items():
        if isinstance(value, dict):
            check_sizes(value, f"{where}: {key}")
        elif key in SIZES and isinstance(value, int) and not 1 <= value <= SIZES[key]:
            raise ModelError(f"{where}: {key} is {value}, expected 1 to {SIZES[key]}")


def check_processor(document: dict[str, Any], where: str) -> None:
    """Refuse a mean, deviation or filter that pixels cannot be normalized with.

    Raises:
        ModelError: Naming the key and its value.
    """
    keys = ("image_mean", "image_std") if document.get("do_normalize", True) else ()
    for key in keys:
        value = document.get(key, 0.5)
        values = value if isinstance(value, list) else [value] * 3
        good = len(values) == 3 and all(type(v) in (int, float) for v in values)
        if not good:
            raise ModelError(f"{where} {key} is {value!r}, expected a number or three")
        least = MOST_PIXEL**-1 if key == "image_std" else -MOST_PIXEL
        if not all(least <= v <= MOST_PIXEL for v in values):  # NaN is not either
            raise ModelError(
                f"{where} {key} is {value!r}, expected {least:g} to {MOST_PIXEL:g}, of pixels of 0"
                " to 1"
            )
    factor = document.get("rescale_factor", 1.0)
    if type(factor) not in (int, float) or not 0 < factor <= MOST_PIXEL:
        raise ModelError(
            f"{where} rescale_factor is {factor!r}, expected a number above 0, {MOST_PIXEL:g} at"
            " most"
        )
    value = document.get("resample", 1)
    if type(value) is not int or not 0 <= value <= 5:
        raise ModelError(f"{where} resample is {value!r}, expected 0 to 5")


def named_tokens(*sources: Any) -> dict[str, str]:
    """Tokens that stand for images, by their keys.

    Args:
        sources: What may name them; the tokenizer's come last and count, as in transformers'
            processors.
    """
    named: dict[str, str] = {}
    for source in sources:
        for key, value in source.items() if isinstance(source, dict) else ():
            token = value.get("content") if isinstance(value, dict) else value
            if key in IMAGE_TOKENS and isinstance(token, str) and token:
                named[key] = token
    return named


@contextmanager
def reading_config() -> Iterator[None]:
    """Inside the body a family reads a config, whose values may be anything.

    Raises:
        ModelError: With what went wrong, in one line.
    """
    try:
        yield
    except MISFITS as cause:
        line = first_line(cause)
        raise ModelError(f"config.json does not match its family: {line}") from cause


def _check_kinds(folder: Path) -> None:
    """Refuse a folder with a pipe or a device, which transformers would wait for.

    Raises:
        ModelError: Naming it.
    """
    for path in folder.iterdir():
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError(f"'{path}' is a pipe or a device, expected the file of a checkpoint")


def check_no_pointer(path: Path) -> None:
    """Refuse the small text file that a clone without Git LFS leaves in a large file's place.

    Raises:
        ModelError: Saying how to get the file.
    """
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ModelError(
                f"{path.name} is a Git LFS pointer, not the file itself; run `git lfs pull` in its"
                " folder, or download the file"
            )
