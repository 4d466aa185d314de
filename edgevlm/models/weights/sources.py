"""Where the weights of a checkpoint are: in its folder, on a hub (`models.hub`), or nowhere.

A plan reads headers, and single numbers where a plan has them (the factor of a likeness); the
rest is read by an export, part by part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from edgevlm.errors import ModelError
from edgevlm.libraries import first_line
from edgevlm.models.documents import check_no_pointer
from edgevlm.models.weights.headers import DTYPES, PLAIN, Header, read_header, weight_names

AT_ONCE = 1 << 24  # numbers that are read at a time
# What is compared of two tensors that a plan takes for one: so many numbers at so many places.
SAMPLE, PLACES = 2048, 3
# Bits of a number's magnitude, by its bytes: as integers, magnitudes are in the order of numbers.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Weights(Protocol):
    """The weight files of a checkpoint."""

    @property
    def headers(self) -> Mapping[str, Header]:
        """Headers of all tensors, by name."""

    def read(self, header: Header, start: int, stop: int) -> bytearray:
        """Bytes of a tensor, from an offset in it up to another."""

    def fetch(self) -> FolderWeights:
        """The same weights in a folder, where they may be read in full.

        Raises:
            ModelError: If there are none.
        """

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors have the same numbers."""


@dataclass(frozen=True)
class FolderWeights:
    """Weight files in a checkpoint's folder.

    Attributes:
        folder: The folder.
        whole: Whether they may be read in full: an export does, a plan does not.
        stem: How the names of the files begin.
    """

    folder: Path
    whole: bool = False
    stem: str = "model"

    @property
    def paths(self) -> tuple[Path, ...]:
        """The one file of weights, or the ones that the index names."""
        return tuple(self.folder / name for name in weight_names(self.folder, self.stem))

    @cached_property
    def headers(self) -> Mapping[str, Header]:
        """Headers of all tensors, by name.

        Raises:
            ModelError: If a file is missing, a Git LFS pointer, or no safetensors file of full
                length.
        """
        headers: dict[str, Header] = {}
        for path in self.paths:
            if not path.is_file():
                raise ModelError(f"{path.name} is missing; download it into the folder")
            check_no_pointer(path)

            def read(start: int, stop: int, path: Path = path) -> bytearray:
                return _read(path, start, stop)

            headers |= read_header(path.name, path.stat().st_size, read)
        return headers

    def read(self, header: Header, start: int, stop: int) -> bytearray:
        """Bytes of a tensor, from an offset in it up to another."""
        return _read(self.folder / header.file, header.start + start, header.start + stop)

    def fetch(self) -> FolderWeights:
        """The same weights, to be read in full."""
        return replace(self, whole=True)

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors have the same numbers; a plan compares samples."""
        return same_numbers(self, first, second, None if self.whole else SAMPLE)


@dataclass(frozen=True)
class NoWeights:
    """A checkpoint without weights, which can be planned by the shapes of its config.

    Attributes:
        reason: Why there are none, for the note of a plan; empty if there is nothing to say.
        refusal: What is said to whoever needs them, without the model's name.
    """

    reason: str
    refusal: str

    @property
    def headers(self) -> Mapping[str, Header]:
        """Headers of no tensors."""
        return {}

    def read(self, header: Header, start: int, stop: int) -> bytearray:
        """Never called, as there is no tensor."""
        raise ModelError(self.refusal)

    def fetch(self) -> FolderWeights:
        """There is nothing to fetch.

        Raises:
            ModelError: Always, saying what to do.
        """
        raise ModelError(self.refusal)

    def same(self, first: str, second: str) -> bool:
        """Never called, as there is no tensor."""
        raise ModelError(self.refusal)


def numbers(weights: Weights, header: Header, start: int, stop: int) -> Tensor:
    """Numbers of a tensor in its own type, from one in its order in memory up to another: [n]."""
    kind = PLAIN[header.dtype]
    if header.pitch:
        return _of_columns(weights, header, start, stop)
    data = weights.read(header, start * kind.itemsize, stop * kind.itemsize)
    return torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)


def _of_columns(weights: Weights, header: Header, start: int, stop: int) -> Tensor:
    """`numbers` of the first columns of a matrix; what is between its rows is read with many."""
    kind, columns = PLAIN[header.dtype], header.shape[1]
    first, last = start // columns, -(-stop // columns)
    height = max(1, AT_ONCE * kind.itemsize // header.pitch)
    parts = [torch.empty(0, dtype=kind)]
    for row in range(first, last, height):
        rows = min(height, last - row)
        end = (row + rows - 1) * header.pitch + columns * kind.itemsize
        data = torch.frombuffer(weights.read(header, row * header.pitch, end), dtype=kind)
        parts.append(data.as_strided((rows, columns), (header.pitch // kind.itemsize, 1)).flatten())
    return torch.cat(parts)[start - first * columns : stop - first * columns]


def single_number(weights: Weights, name: str) -> float:
    """A weight that is one number.

    Raises:
        ModelError: If there is none of this name, or it is no number.
    """
    header = weights.headers.get(name)
    if header is None or header.dtype not in DTYPES or math.prod(header.shape) != 1:
        raise ModelError(f"it lacks the weight '{name}', one number")
    return float(numbers(weights, header, 0, 1).item())


def same_numbers(weights: Weights, first: str, second: str, sample: int | None = None) -> bool:
    """Whether two tensors have the same numbers.

    Args:
        weights: Their files.
        first: One tensor.
        second: The other.
        sample: Numbers that are compared at the beginning, in the middle and at the end; None
            compares all.
    """
    one, other = weights.headers[first], weights.headers[second]
    if one.shape != other.shape:
        return False
    spans = _parts(one) if sample is None else _places(math.prod(one.shape), sample)
    return all(
        torch.equal(numbers(weights, one, *span).float(), numbers(weights, other, *span).float())
        for span in spans
    )


@lru_cache(maxsize=4)
def largest_numbers(weights: FolderWeights, contents: str) -> dict[str, float]:
    """The largest magnitude of each tensor; inf or nan where one number of it is not finite.

    Args:
        weights: The files, which are read in full.
        contents: A line that changes when they do: they are read once.
    """
    return {
        name: max((_top(numbers(weights, header, *span)) for span in _parts(header)), key=_order)
        for name, header in weights.headers.items()
        if header.dtype in DTYPES and 0 not in header.shape
    }


def _order(top: float) -> tuple[bool, float]:
    """Magnitudes in ascending order, no number last."""
    return math.isnan(top), top


def _top(values: Tensor) -> float:
    """The largest magnitude [n] -> one number."""
    kind = _BITS[values.itemsize]
    bits = values.view(kind).bitwise_and_(torch.iinfo(kind).max)
    return float(bits.max().reshape(1).view(values.dtype).item())


def _parts(header: Header) -> Iterator[tuple[int, int]]:
    """Spans of at most `AT_ONCE` numbers."""
    count = math.prod(header.shape)
    return ((i, min(i + AT_ONCE, count)) for i in range(0, count, AT_ONCE))


def _places(count: int, sample: int) -> list[tuple[int, int]]:
    """Spans of `sample` numbers from the first to the last."""
    starts = {(count - min(sample, count)) * i // (PLACES - 1) for i in range(PLACES)}
    return [(start, min(start + sample, count)) for start in sorted(starts)]


def _read(path: Path, start: int, stop: int) -> bytearray:
    """Bytes of a file.

    Raises:
        ModelError: If it cannot be read, or ends before.
    """
    data, read = bytearray(stop - start), 0
    try:
        with path.open("rb", buffering=0) as file, memoryview(data) as view:
            file.seek(start)
            while count := file.readinto(view[read:]):
                read += count
    except OSError as cause:
        raise ModelError(f"{path.name} cannot be read: {first_line(cause)}") from cause
    if read < len(data):
        raise ModelError(f"{path.name} has become shorter while it was read; download it again")
    return data
