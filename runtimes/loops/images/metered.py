"""A file whose reader asks for room as it reads: what a decoder keeps beside the pixels.

Pillow keeps all segments of a JPEG, private, EXIF and text chunks of a PNG, and the whole file of
some formats. A file may have as many as it likes, so none is read before there is room for it.
Text may be packed a thousandfold, so memory is counted again every few hundred bytes.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.images.room import Room

EVERY_BYTES = 256  # read between two counts: text of 264 kB at most
BLOCK_BYTES = 2**20  # Pillow reads longer pieces in blocks of this size, and joins them then


class Metered:
    """A binary file over another one; `read` refuses what a budget has no room for."""

    def __init__(self, file: BinaryIO, room: Room, name: str) -> None:
        self._file, self._room, self._name = file, room, name
        self._uncounted = self._blocks = 0

    def read(self, size: int = -1) -> bytes:
        """Read as the file does.

        Raises:
            InputError: If a memory budget has no room for it.
        """
        size = self._rest() if size is None or size < 0 else size
        if size >= BLOCK_BYTES:
            self._count(self._blocks + min(size, self._rest()))
        data = self._file.read(size)
        self._blocks = self._blocks + len(data) if size >= BLOCK_BYTES else 0
        self._uncounted += len(data)
        if self._uncounted > EVERY_BYTES:
            self._count(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        """Everything else is the file's."""
        return getattr(self._file, name)

    def _rest(self) -> int:
        position = self._file.tell()
        end = self._file.seek(0, 2)
        self._file.seek(position)
        return end - position

    def _count(self, size: int) -> None:
        self._uncounted = 0
        if self._room.shortage is not None and (missing := self._room.shortage(size)):
            more = -(-missing // 10**6)
            raise InputError(
                f"{self._name} and its metadata take more than the memory budget leaves; save it"
                f" without metadata, or raise --memory by at least {more} MB"
            )
