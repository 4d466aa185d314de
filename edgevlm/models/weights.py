"""Weight files of a checkpoint: which they are, their headers, and the size of their numbers.

A safetensors file begins with the names, types and shapes of its tensors, so a plan is compared
with a checkpoint of any size before one weight is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from edgevlm.errors import ModelError
from edgevlm.libraries import first_line
from edgevlm.models.documents import check_no_pointer, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Types of a model's numbers, and of tables of positions beside them; all else is quantized.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PLAIN = (*DTYPES, "I64", "BOOL")
AT_ONCE = 1 << 24  # numbers that are read at a time
# What PEFT calls the tensors of adapters.
_ADAPTER = re.compile(
    r"\.(lora_\w+|base_layer|modules_to_save|original_module|ia3_l|hada_\w+|lokr_\w+|oft_\w+"
    r"|boft_\w+|vera_lambda_\w+|prompt_embeddings)(\.|$)"
)


@dataclass(frozen=True)
class Header:
    """What the file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str


def weight_names(folder: Path) -> list[str]:
    """The one file of weights, or the ones that the index names.

    Raises:
        ModelError: If there is neither, or the index leads out of the folder.
    """
    if (folder / SINGLE).exists() or not (folder / INDEX).is_file():
        return [SINGLE]
    file_of = read_json(folder / INDEX).get("weight_map")
    names = set(file_of.values()) if isinstance(file_of, dict) else set()
    if not names or any(not name or Path(str(name)).name != name for name in names):
        raise ModelError(f"expected {INDEX} to have the names of files beside it in weight_map")
    return sorted(names)


def read_headers(paths: Iterable[Path]) -> dict[str, Header]:
    """Headers of all tensors of some files.

    Raises:
        ModelError: If a file is missing, a Git LFS pointer, or no safetensors file of full length.
    """
    headers: dict[str, Header] = {}
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{path.name} is missing; download it into the folder")
        check_no_pointer(path)
        try:
            file: Any = safe_open(path, "pt", backend="pread")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        except Exception as cause:  # the library raises its own kind
            raise ModelError(
                f"{path.name} is damaged or not complete: {first_line(cause)}; download it again"
            ) from cause
        for name, tensor in slices.items():
            headers[name] = Header(tuple(tensor.get_shape()), str(tensor.get_dtype()))
    return headers


def check_plain(headers: Mapping[str, Header]) -> None:
    """Refuse adapters that are not merged, and numbers that are packed.

    Raises:
        ModelError: Naming the first such tensor and what to do.
    """
    adapters = sorted(name for name in headers if _ADAPTER.search(name))
    if adapters:
        raise ModelError(
            f"its weights hold an adapter that is not merged (tensors: {len(adapters)}, the first"
            f" is '{adapters[0]}'); merge it with PEFT's merge_and_unload() and save the model"
        )
    packed = sorted(name for name, header in headers.items() if header.dtype not in PLAIN)
    if packed:
        raise ModelError(
            f"its weights are quantized: '{packed[0]}' is {headers[packed[0]].dtype}; use the"
            " checkpoint that it was made from, and --quantize"
        )


def same_numbers(paths: Sequence[Path], first: str, second: str) -> bool:
    """Whether two tensors of some files are equal in all their numbers."""
    files: list[Any] = [safe_open(path, "pt", backend="pread") for path in paths]
    slices = [
        next(file.get_slice(name) for file in files if name in file.keys())  # noqa: SIM118
        for name in (first, second)
    ]
    shape = tuple(slices[0].get_shape())
    if shape != tuple(slices[1].get_shape()):
        return False
    return all(torch.equal(slices[0][part], slices[1][part]) for part in _parts(shape))


@lru_cache(maxsize=4)
def largest_numbers(paths: tuple[Path, ...], contents: str) -> dict[str, float]:
    """The largest magnitude of each tensor; inf or nan where one number of it is not finite.

    Args:
        paths: The files.
        contents: A line that changes when they do: they are read once.
    """
    tops: dict[str, float] = {}
    for path in paths:
        file: Any = safe_open(path, "pt", backend="pread")
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_slice(name)
            shape = tuple(tensor.get_shape())
            if str(tensor.get_dtype()) not in DTYPES or 0 in shape:
                continue
            parts = (tensor[part] for part in _parts(shape)) if shape else [file.get_tensor(name)]
            pairs = [torch.aminmax(part) for part in parts]
            ends = [abs(float(end)) for pair in pairs for end in pair]
            tops[name] = math.nan if any(map(math.isnan, ends)) else max(ends)
    return tops


def _parts(shape: tuple[int, ...]) -> list[slice]:
    """Ranges of rows of at most `AT_ONCE` numbers."""
    rows = max(1, AT_ONCE // max(1, math.prod(shape[1:])))
    length = shape[0] if shape else 1
    return [slice(start, min(start + rows, length)) for start in range(0, length, rows)]
