"""Weight files of a checkpoint: which they are, and their headers.

A safetensors file begins with the names, types, shapes and offsets of its tensors, so a plan is
compared with a checkpoint of any size before one weight is read. The header is read and checked
here, whether the file is in a folder or behind a hub's range requests.

Source: the format's description, https://huggingface.co/docs/safetensors: 8 bytes, the header's
length N as a little-endian number; N bytes of JSON; the tensors, without gaps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgevlm.bundle.documents import parse_json, shown
from edgevlm.errors import ModelError
from edgevlm.libraries import first_line
from edgevlm.models.documents import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Types of a model's numbers, and of tables of positions beside them; all else is quantized.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PLAIN = DTYPES | {"I64": torch.int64, "BOOL": torch.bool}
FIRST_BYTES = 100_000  # of a file, in which most headers end
MOST, MOST_AXES = 2**62, 16  # of a size, and of sizes of a tensor
MOST_BYTES = 100_000_000  # of a header: the format's own limit
MOST_NAME = 255  # bytes of a file's name, as file systems have them
# What PEFT calls the tensors of adapters.
_ADAPTER = re.compile(
    r"\.(lora_\w+|base_layer|modules_to_save|original_module|ia3_l|hada_\w+|lokr_\w+|oft_\w+"
    r"|boft_\w+|vera_lambda_\w+|prompt_embeddings)(\.|$)"
)


@dataclass(frozen=True)
class Header:
    """What the files say of a tensor.

    Attributes:
        shape: Its shape.
        dtype: Its type, as the format names it.
        file: The file that has it.
        start: Offset of its first byte in the file.
        stop: Offset after its last byte.
        pitch: Bytes from a row to the next, where the file has more columns; 0 where it has none.
    """

    shape: tuple[int, ...]
    dtype: str
    file: str
    start: int
    stop: int
    pitch: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * PLAIN[self.dtype].itemsize

    def first(self, axis: int, size: int) -> Header:
        """The first rows (axis 0) or columns (axis 1) of a matrix, where they are in the file."""
        rows, columns = self.shape
        row_bytes = columns * PLAIN[self.dtype].itemsize
        if axis:
            return replace(self, shape=(rows, size), pitch=row_bytes)
        return replace(self, shape=(size, columns), stop=self.start + size * row_bytes)


def weight_names(folder: Path, stem: str = "model") -> list[str]:
    """The one file of weights, or the ones that the index names.

    Args:
        folder: Where they are.
        stem: How the names of the file and of the index begin.

    Raises:
        ModelError: If there is neither, or the index leads out of the folder.
    """
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if (folder / single).exists() or not (folder / index).is_file():
        return [single]
    file_of = read_json(folder / index).get("weight_map")
    names = list(file_of.values()) if isinstance(file_of, dict) else []
    wrong = [shown(name) for name in names if not _is_beside(name)]
    if wrong or not names:
        named = wrong[0] if wrong else "no file"
        raise ModelError(
            f"weight_map of {index} names {named}, expected names of .safetensors files beside it;"
            " download the index again"
        )
    return sorted(set(names))


def read_header(name: str, size: int, read: Callable[[int, int], bytearray]) -> dict[str, Header]:
    """Headers of all tensors of a file.

    Args:
        name: The file.
        size: Its bytes.
        read: Bytes of it, from an offset up to another.

    Raises:
        ModelError: If it is no safetensors file of full length.
    """
    first = read(0, min(size, FIRST_BYTES))
    length = int.from_bytes(first[:8], "little")
    if size < 8 or not 2 <= length <= min(size - 8, MOST_BYTES):
        raise _damaged(name, f"its header has {length:,} bytes in a file of {size:,}")
    data, after = first[8 : 8 + length], 8 + length
    if len(data) < length:
        data += read(len(first), after)
    try:
        document = parse_json(data.decode("utf-8"), "the header")
        document.pop("__metadata__", None)
        headers = {key: _header(name, after, entry) for key, entry in document.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as cause:
        raise _damaged(name, f"its header is not valid ({first_line(cause)})") from cause
    end = after
    for key, header in sorted(headers.items(), key=lambda item: (item[1].start, item[1].stop)):
        kind = PLAIN.get(header.dtype)
        bytes_ = header.stop - header.start
        if header.start != end or (kind and bytes_ != math.prod(header.shape) * kind.itemsize):
            raise _damaged(name, f"tensor '{key}' has {bytes_:,} bytes at {header.start:,}")
        end = header.stop
    if end != size:
        raise _damaged(name, f"it has {size:,} bytes, and its header tells of {end:,}")
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


def first_layers(
    headers: Mapping[str, Header], side_by_side: Mapping[str, tuple[int, int]]
) -> dict[str, Header]:
    """Headers of a model of fewer layers.

    Args:
        headers: Those of the whole model.
        side_by_side: Matrices that have numbers of all layers side by side: axis, and size along
            it in the smaller model, by the end of the name.
    """
    found = dict(headers)
    for end, (axis, size) in side_by_side.items():
        for name, header in headers.items():
            if name.endswith(end) and len(header.shape) == 2 and header.shape[axis] > size:
                found[name] = header.first(axis, size)
    return found


def _is_beside(name: Any) -> bool:
    """Whether a value is the name of a file of weights, without a folder."""
    good = isinstance(name, str) and name.isprintable() and name.endswith(".safetensors")
    return good and Path(name).name == name and len(name.encode()) <= MOST_NAME


def _header(file: str, after: int, entry: dict[str, Any]) -> Header:
    """One entry of a header that ends at byte `after`.

    Raises:
        ValueError: If its numbers are none.
    """
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, start, stop)
    if not all(type(n) is int and 0 <= n < MOST for n in numbers) or len(shape) > MOST_AXES:
        raise ValueError(f"shape {str(list(shape))[:60]}, bytes {start} to {stop}"[:200])
    return Header(shape, str(entry["dtype"]), file, after + start, after + stop)


def _damaged(name: str, line: str) -> ModelError:
    return ModelError(f"{name} is damaged or not complete: {line}; download it again")
