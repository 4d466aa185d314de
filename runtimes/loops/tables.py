"""The tokenizer of a bundle, and its embedding table, which is read row by row.

Texts of an encoder are cut or filled up to S tokens, as the checkpoint's tokenizer does it. A text
of any length costs little: only its beginning is cut into tokens, until twice as much of it gives
the same S tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.bundle.allowed.tokenizer import read_tokenizer
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.host import Embedding
from edgevlm.bundle.kinds.shared.text import TextHost
from edgevlm.bundle.packed import PACKINGS, unpack
from edgevlm.errors import BundleError

Floats = NDArray[np.float32]
BEGINNING = 16  # letters for each of the S tokens of a text that are looked at first


def load_tokenizer(bundle: Bundle, rows: int) -> Tokenizer:
    """The bundle's tokenizer; a text like `<image>` is not a special token.

    Args:
        bundle: The bundle.
        rows: Rows of the embedding table that are words.

    Raises:
        BundleError: If the file is not a tokenizer, or has more tokens than the table has rows.
    """
    try:
        tokenizer = Tokenizer.from_str(read_tokenizer(bundle.file("tokenizer.json")))
    except (BundleError, KeyboardInterrupt):
        raise
    except BaseException as cause:  # the library raises bare Exception, and worse
        raise BundleError(f"'tokenizer.json' is not valid: {cause}") from cause
    most = max(tokenizer.get_vocab().values(), default=0)
    if most >= rows:
        raise BundleError(
            f"'tokenizer.json' has the token id {most}, the embedding table has {rows} rows"
        )
    tokenizer.encode_special_tokens = True
    return tokenizer


class Table(Protocol):
    """An embedding table [rows, C] that gives rows: an array, or one that is read at use."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and channels."""

    def __getitem__(self, rows: Any) -> Floats:
        """Rows by index or indices, as numpy would return them."""


class Rows:
    """A matrix in a file that is read row by row: `matrix[rows]`.

    It is not mapped: pages of a mapped file stay resident, more of them with each token.
    """

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, int], offset: int = 0) -> None:
        self.shape, self._dtype, self._offset = shape, np.dtype(dtype), offset
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Rows by index, slice or indices from 0 on, as numpy would return them.

        Raises:
            BundleError: If the file is too short.
            IndexError: If a row is outside the table.
        """
        count = self.shape[0]
        indices = np.arange(*rows.indices(count)) if isinstance(rows, slice) else np.asarray(rows)
        if indices.size and not 0 <= indices.min() <= indices.max() < count:
            raise IndexError(f"rows {indices.min()} to {indices.max()} of a table of {count}")
        values = np.empty((*indices.shape, self.shape[1]), self._dtype)
        size = self.shape[1] * self._dtype.itemsize
        flat = values.reshape(indices.size, self.shape[1])
        for row, index in zip(flat, indices.flat, strict=True):
            self._file.seek(self._offset + int(index) * size)
            if self._file.readinto(row.data) != size:
                raise BundleError(f"'{self._file.name}' ends before row {index} of its table")
        return values


class PackedTable:
    """A low-bit table that is read as float32: `table[rows]` unpacks these rows."""

    def __init__(self, path: Path, embedding: Embedding) -> None:
        self.shape = (embedding.rows, embedding.columns)
        self._packing = PACKINGS[embedding.dtype]
        numbers, scales = embedding.row_bytes
        _, start = embedding.row_offset(0)
        self._numbers = Rows(path, np.uint8, (embedding.rows, numbers))
        self._scales = Rows(path, np.float32, (embedding.rows, scales // 4), start)

    def __getitem__(self, rows: Any) -> Floats:
        """Rows by index, slice or indices, as numpy would return them."""
        return unpack(self._numbers[rows], self._scales[rows], self._packing, self.shape[1])


class ScaledTable:
    """A table whose rows are multiplied as they are read: `table[rows]`."""

    def __init__(self, table: Rows | PackedTable, scale: float) -> None:
        self.shape = table.shape
        self._table, self._scale = table, np.float32(scale)

    def __getitem__(self, rows: Any) -> Floats:
        """Rows by index, slice or indices, as numpy would return them."""
        values: Floats = self._table[rows] * self._scale
        return values


class JoinedTable:
    """Two tables whose rows stand side by side: `table[rows]` has those of the second behind.

    Rows that the second has not are its row `otherwise`.
    """

    def __init__(self, first: Table, second: Table, otherwise: int) -> None:
        self.shape = (first.shape[0], first.shape[1] + second.shape[1])
        self._first, self._second, self._otherwise = first, second, otherwise

    def __getitem__(self, rows: Any) -> Floats:
        """Rows by index, slice or indices, as numpy would return them."""
        chosen = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else rows
        second = np.where(np.asarray(chosen) < self._second.shape[0], chosen, self._otherwise)
        return np.concatenate((self._first[chosen], self._second[second]), axis=-1)


def load_tables(bundle: Bundle) -> Table:
    """The rows of a vlm's tokens: of its embedding table, and of a second one beside it."""
    host = bundle.plan.host
    table = load_table(bundle, host.embedding)
    if host.per_layer is None:
        return table
    return JoinedTable(table, load_table(bundle, host.per_layer.table), host.per_layer.visual_row)


def load_table(bundle: Bundle, embedding: Embedding) -> Table:
    """An embedding table of the bundle [rows, C]; a row is read at use."""
    path, shape = bundle.file(embedding.file), (embedding.rows, embedding.columns)
    packed = embedding.dtype != "f32"
    table = PackedTable(path, embedding) if packed else Rows(path, np.float32, shape)
    return table if embedding.scale == 1 else ScaledTable(table, embedding.scale)


class Words:
    """The tokenizer of a bundle, and the table [V, C] whose rows stand for its tokens."""

    def __init__(self, bundle: Bundle, host: TextHost) -> None:
        """Read the tokenizer.

        Raises:
            BundleError: If it is none, or does not end a text as the manifest says.
        """
        self.host = host
        self._tokenizer = load_tokenizer(bundle, host.embedding.rows)
        end = next(reversed(self._tokenizer.encode("").ids), None)
        if end != host.end_id:
            raise BundleError(
                f"'tokenizer.json' ends a text with token {end}, the manifest has"
                f" host.text.end_id {host.end_id}; export the model again"
            )
        self.table = load_table(bundle, host.embedding)

    def ids(self, text: str) -> list[int]:
        """S tokens: those of the text, with its end token even if truncated, then padding."""
        host = self.host
        ids = self._first(text.lower() if host.lower_case else text)
        if len(ids) > host.tokens:
            ends = [] if host.end_id is None else [host.end_id]
            ids = [*ids[: host.tokens - len(ends)], *ends]
        return [*ids, *[host.pad_id] * (host.tokens - len(ids))]

    def end(self, ids: Sequence[int]) -> int:
        """Index of the first end token."""
        return [*ids].index(self.host.end_id or 0)

    def _first(self, text: str) -> list[int]:
        """The tokens of a text; of a long one at least the first S."""
        tokens, length = self.host.tokens, BEGINNING * self.host.tokens
        before: list[int] = []
        while length < len(text):
            ids: list[int] = self._tokenizer.encode(text[:length]).ids
            if len(before) > tokens and before[:tokens] == ids[:tokens]:
                return ids
            before, length = ids, 2 * length
        whole: list[int] = self._tokenizer.encode(text).ids
        return whole
