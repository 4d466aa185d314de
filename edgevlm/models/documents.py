"""JSON documents of a checkpoint: read, and refused where their numbers have no meaning."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from edgevlm.bundle.checks import MOST_PIXEL
from edgevlm.bundle.documents import load_json
from edgevlm.errors import ModelError
from edgevlm.libraries import first_line
from edgevlm.recipe import MOST_SIDE

_log = logging.getLogger(__name__)
LIMIT_BYTES = 64 * 10**6

# The largest sizes that a config may have; each is 1 at least.
SIZES = {
    "attention_head_dim": 2**16, "base_dim": 2**16, "conv_L_cache": 2**10, "d_ff": 2**20,
    "d_kv": 2**16, "d_model": 2**20, "depth": 2**10, "downsample_factor": 2**10, "ffn_dim": 2**20,
    "freq_dim": 2**16, "global_head_dim": 2**16,
    "head_dim": 2**16, "hidden_size": 2**20, "image_size": 2**16, "intermediate_size": 2**20,
    "linear_conv_kernel_dim": 2**10, "linear_key_head_dim": 2**16, "linear_num_key_heads": 2**12,
    "linear_num_value_heads": 2**12, "linear_value_head_dim": 2**16,
    "max_position_embeddings": 2**24, "mm_tokens_per_image": 2**20, "num_attention_heads": 2**12,
    "num_channels": 2**10, "num_heads": 2**12, "num_hidden_layers": 2**10,
    "num_key_value_heads": 2**12, "num_layers": 2**10, "original_max_position_embeddings": 2**24,
    "out_hidden_size": 2**20, "patch_size": 2**16, "pooling_kernel_size": 2**10,
    "projection_dim": 2**20, "projector_hidden_size": 2**20, "rope_max_seq_len": 2**20,
    "scale_factor": 2**10,
    "spatial_merge_size": 2**10, "temporal_patch_size": 2**10, "text_dim": 2**20,
    "vocab_size": 2**24, "vocab_size_per_layer_input": 2**24, "z_dim": 2**10,
}  # fmt: skip
# The same for those that may be 0 or, of an id, -1: none.
SIZES_OR_NONE = {"hidden_size_per_layer_input": (0, 2**20), "pad_token_id": (-1, 2**24)}
# Numbers of an image processor; each is 1 at least.
COUNTS = (
    "downsample_factor", "encoder_patch_size", "max_image_tokens", "max_patches",
    "max_pixels", "max_slice_nums", "max_soft_tokens", "merge_size", "min_image_tokens",
    "patch_size", "pooling_kernel_size", "scale_resolution", "temporal_patch_size", "tile_size",
)  # fmt: skip
SIDES = ("encoder_patch_size", "patch_size", "scale_resolution", "tile_size")  # pixels, of those
MOST_COUNT = 2**31
IN_A_PICTURE = ("max_image_tokens", "max_soft_tokens", "min_image_tokens")
MOST_IN_A_PICTURE = 2**16
SHARES = ("partial_rotary_factor",)  # above 0, and 1 at most
# Numbers above 0 by which a model divides, or of which it takes a root or a logarithm.
POSITIVE = (
    "beta_fast", "beta_slow", "downsample_ratio", "embedding_multiplier", "factor",
    "high_freq_factor", "logits_scaling", "low_freq_factor", "query_pre_attn_scalar", "rope_theta",
)  # fmt: skip
MOST = 1e12  # of any of them
MOST_NUMBER = 1e38  # of any number: float32 ends there
# Keys of numbers of which one of 0, or one below it, has a meaning.
MAY_BE_ZERO = re.compile(
    r"LABEL|drop|ids?$|index|layer|std|range|shared|sliding|coef|chunk|eps|bias|pad"
)
MAY_BE_LESS = re.compile(r"ids?$|index|layer|bias")

NORMALIZING = ("image_mean", "image_std")
NUMBERS = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
# Keys of tokens that stand for images; a family reads them beside the processor's numbers.
IMAGE_TOKENS = ("image_token", "video_token", "fake_image_token", "global_image_token")
POINTER = b"version https://git-lfs"
# What arithmetic over a config raises where a value is of no use.
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
Document = Callable[[str], dict[str, Any]]


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


def check_config(document: dict[str, Any], where: str) -> None:
    """Refuse numbers that no model has, before anything is built from them.

    Raises:
        ModelError: Naming the key, its value and the range.
    """
    for key, value in document.items():
        if isinstance(value, dict):
            check_config(value, f"{where}: {key}")
            continue
        for number in value if isinstance(value, list) else (value,):
            if number is not None and (wanted := _wanted(key, number)):
                raise ModelError(f"{where}: {key} is {_said(value)}, expected {wanted}")


def _wanted(key: str, value: Any) -> str:
    """What was expected in a value's place; empty where it will do."""
    number = type(value) in (int, float)
    if key in SIZES and not _whole(value, SIZES[key]):
        return f"1 to {SIZES[key]}"
    if key in SIZES_OR_NONE:
        least, most = SIZES_OR_NONE[key]
        if not (number and value % 1 == 0 and least <= value <= most):
            return f"{least} to {most}"
    if key in SHARES and not (number and 0 < value <= 1):
        return "a number above 0, 1 at most"
    if key in POSITIVE and not (number and 0 < value <= MOST):
        return f"a number above 0, {MOST:g} at most"
    bounded = number and "limit" not in key  # a limit may be infinite
    if bounded and not -MOST_NUMBER <= value <= MOST_NUMBER:  # NaN is not either
        return "a finite number"
    return ""


def _whole(value: Any, most: int) -> bool:
    """Whether a value is a whole number of at least 1."""
    return type(value) in (int, float) and value % 1 == 0 and 1 <= value <= most


def _said(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def processor_numbers(document: Document, of: str) -> dict[str, Any]:
    """Numbers of the `image` or the `video` processor, wherever a checkpoint's version keeps them.

    A key that is null is left out, as transformers gives it the default of its class; but for those
    of `NORMALIZING`, without which it makes no pixels.

    A video processor without numbers of its own has those of the image processor, as transformers
    loads it.

    Args:
        document: Reads a JSON file of the checkpoint by its name; an empty one where it has none.
        of: Which.
    """
    for kind in dict.fromkeys((of, "image")):
        nested = document("processor_config.json").get(f"{kind}_processor")
        numbers = nested if nested and isinstance(nested, dict) else document(NUMBERS[kind])
        if numbers:
            return {k: v for k, v in numbers.items() if v is not None or k in NORMALIZING}
    return {}


def check_processor(document: dict[str, Any], where: str) -> None:
    """Refuse numbers by which no picture can be cut, resized or normalized.

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
    for key in COUNTS:
        value = document.get(key)
        numbers = value.values() if isinstance(value, dict) else (value,)
        most = MOST_SIDE if key in SIDES else MOST_COUNT
        most = MOST_IN_A_PICTURE if key in IN_A_PICTURE else most
        if any(n is not None and not _whole(n, most) for n in numbers):
            raise ModelError(f"{where} {key} is {_said(value)}, expected 1 to {most}")
    factor = document.get("rescale_factor", 1.0)
    if type(factor) not in (int, float) or not 0 < factor <= MOST_PIXEL:
        raise ModelError(
            f"{where} rescale_factor is {factor!r}, expected a number above 0, {MOST_PIXEL:g} at"
            " most"
        )
    value = document.get("resample", 1)
    if type(value) is not int or not 0 <= value <= 5:
        raise ModelError(f"{where} resample is {value!r}, expected 0 to 5")


def named_tokens(sources: Iterable[Any]) -> dict[str, str]:
    """Tokens that stand for images, by their keys; of several sources the last that names one."""
    named: dict[str, str] = {}
    for source in sources:
        for key, value in source.items() if isinstance(source, dict) else ():
            token = value.get("content") if isinstance(value, dict) else value
            if key in IMAGE_TOKENS and isinstance(token, str) and token:
                named[key] = token
    return named


@contextmanager
def reading_config(config: Any) -> Iterator[None]:
    """Inside the body a family reads a config, whose values may be anything.

    Args:
        config: transformers' config; its odd numbers are named where arithmetic fails.

    Raises:
        ModelError: With what went wrong, in one line.
    """
    try:
        yield
    except MISFITS as cause:
        line, odd = first_line(cause), ""
        if isinstance(cause, ArithmeticError | ValueError):
            found = list(islice(_odd_numbers(config.to_dict()), 3))
            odd = f"; look at {', '.join(found)}" * bool(found)
        raise ModelError(f"config.json does not match its family: {line}{odd}") from cause


def _odd_numbers(document: dict[str, Any], where: str = "") -> Iterator[str]:
    """The numbers of a config that few models have: of 0, below 0, or beyond 2^31."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _odd_numbers(value, f"{where}{key}.")
        elif type(value) in (int, float):
            usual = 0 < value <= 2**31
            usual = usual or (value == 0 and MAY_BE_ZERO.search(key) is not None)
            if not usual and not (value < 0 and MAY_BE_LESS.search(key)):
                yield f"{where}{key} {_said(value)}"


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


def of_checkpoint(model: str, cause: ModelError) -> ModelError:
    """An error of a checkpoint's files with its name: what `it` is, or what is the matter."""
    text = str(cause)
    if text.startswith(f"'{model}'"):
        return cause
    return ModelError(f"'{model}' {text[3:]}" if text[:3] == "it " else f"'{model}': {text}")


@cache
def say_once(line: str) -> None:
    """Log a line that concerns the user, once a process."""
    _log.warning(line)
