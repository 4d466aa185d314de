"""The tokenizer of a bundle, and its embedding table: rows that are read as they are used."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.host import Embedding
from edgevlm.bundle.packed import PACKINGS, unpack
from edgevlm.errors import BundleError

Floats = NDArray[np.float32]


def load_tokenizer(bundle: Bundle, rows: int) -> Tokenizer:
    """The bundle's tokenizer; words like `<image>` in a text stay words.

    Args:
        bundle: The bundle.
        rows: Of the embedding table.

    Raises:
        BundleError: If the file is not one, or knows more tokens than the table has rows.
    """
    try:
        tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
    except BundleError:
        raise
    except Exception as cause:  # the library raises bare Exception
        raise BundleError(f"'tokenizer.json' is not valid: {cause}") from cause
    most = max(tokenizer.get_vocab().values(), default=0)
    if most >= rows:
        raise BundleError(f"'tokenizer.json' has the id {most}, the embedding table {rows} rows")
    tokenizer.encode_special_tokens = True
    return tokenizer


class Rows:
    """A matrix in a file, of which rows are read as they are asked for: `matrix[rows]`.

    It is not mapped: pages of a mapped file stay resident, some more with each token.
    """

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, int], offset: int = 0) -> None:
        self.shape, self._dtype, self._offset = shape, np.dtype(dtype), offset
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Rows by number, slice or numbers from 0 on, as numpy would give them.

        Raises:
            BundleError: If the file ends before.
            IndexError: If there is no such row.
        """
        count = self.shape[0]
        places = np.arange(*rows.indices(count)) if isinstance(rows, slice) else np.asarray(rows)
        if places.size and not 0 <= places.min() <= places.max() < count:
            raise IndexError(f"rows {places.min()} to {places.max()} of a table of {count}")
        found = np.empty((*places.shape, self.shape[1]), self._dtype)
        size = self.shape[1] * self._dtype.itemsize
        flat = found.reshape(places.size, self.shape[1])
        for row, place in zip(flat, places.flat, strict=True):
            self._file.seek(self._offset + int(place) * size)
            if self._file.readinto(row.data) != size:
                raise BundleError(f"'{self._file.name}' ends before row {place} of its table")
        return found


class PackedTable:
    """A table of few bits that is read as float32: `table[rows]` unpacks these rows."""

    def __init__(self, path: Path, embedding: Embedding) -> None:
        self.shape = (embedding.rows, embedding.columns)
        self._packing = PACKINGS[embedding.dtype]
        numbers, scales = embedding.row_bytes
        _, start = embedding.row_offset(0)
        self._numbers = Rows(path, np.uint8, (embedding.rows, numbers))
        self._scales = Rows(path, np.float32, (embedding.rows, scales // 4), start)

    def __getitem__(self, rows: Any) -> Floats:
        """Rows by number, slice or numbers, as numpy would give them."""
        return unpack(self._numbers[rows], self._scales[rows], self._packing, self.shape[1])


Table = Floats | Rows | PackedTable


def load_table(bundle: Bundle, embedding: Embedding) -> Table:
    """An embedding table of the bundle [rows, C]: a row is read when it is used."""
    path = bundle.file(embedding.file)
    if embedding.dtype != "f32":
        return PackedTable(path, embedding)
    return Rows(path, np.float32, (embedding.rows, embedding.columns))
