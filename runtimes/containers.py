"""Which formats a video may have, and what the tables of an ISO file (MP4, QuickTime) claim.

FFmpeg makes 24 bytes and more of each sample that a table counts, and a table of constant sizes or
times counts 4 billion in 20 bytes. So the boxes are read before FFmpeg reads them: no table has
more entries than its box holds, and all tables of a file together count no more samples than the
file can hold. FFmpeg takes a table wherever it stands, and cuts a box to what holds it; so what is
no known box of boxes is searched for names of tables, byte by byte.

Source: ISO/IEC 14496-12, sections 8.6 to 8.8; the QuickTime File Format for `cmov`.
Limits: entries of the tables that are named here; other boxes have no counts, or small ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.errors import InputError

# Containers of one stream; none names other files or addresses, as playlists do. Those of ISO
# files are not among them, for their tables cannot be read in front of FFmpeg.
STREAMED = (
    "mpegts,matroska,webm,avi,flv,mjpeg,mpjpeg,h264,hevc,av1,obu,ivf,ogg,asf,mpeg,mpegvideo,m4v,nut,"
    "yuv4mpegpipe"
)
# Of a file also pictures, animations, raw streams, and sound, which is said to be no video.
_OF_FILES = (
    f"{STREAMED},aac,ac3,apng,aiff,bmp_pipe,caf,dv,flac,gif,h261,h263,image2,jpeg_pipe,jpegxl_anim,"
    "mp3,mpegtsraw,mxf,png_pipe,rm,swf,tiff_pipe,vc1,vvc,wav,webp,webp_pipe,wtv"
)
_ISO = "mov"

# First boxes of a file that FFmpeg takes for one of this format.
_FIRST = (
    b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"udta",
    b"uuid", b"junk", b"sidx", b"emsg", b"prft", b"PICT", b"meta",
)  # fmt: skip
_INSIDE = (
    b"edts", b"dinf", b"mdia", b"minf", b"moof", b"moov", b"mvex", b"stbl", b"traf", b"trak",
)  # fmt: skip
_DATA = (b"mdat",)
# Tables: where their count of entries is, behind the box's name, and the bytes of an entry.
_TABLES = {
    b"stts": (4, 8), b"ctts": (4, 8), b"stsc": (4, 12), b"stco": (4, 4), b"co64": (4, 8),
    b"stss": (4, 4), b"elst": (4, 12), b"stsz": (8, 4), b"stz2": (8, 0.5), b"trun": (4, 0),
    b"cmov": (4, 0), b"hdlr": (4, 0),
}  # fmt: skip
_NAMES = re.compile(b"|".join(_TABLES))
_FIELDS = 0x0F00  # flags of `trun`: fields of four bytes that each sample has

MOST_DEPTH, MOST_BOXES = 16, 100_000
MOST_SAMPLES = 2**22  # of a file: 19 hours at 60 a second, 100 MB of index
MOST_PIECES = 2**23  # samples times edits; runs of 1,024 values of sound
RUN = 1024
WINDOW = 2**20  # bytes that are searched at a time


def formats_of(file: Any, name: str) -> str:
    """FFmpeg's names of the formats that a file may have: ISO files alone, or all others.

    Args:
        file: A binary file that can seek; it is at its beginning afterwards.
        name: Of the file, for errors.

    Raises:
        InputError: If the tables of an ISO file claim what it cannot hold.
    """
    size = file.seek(0, 2)
    file.seek(0)
    iso = file.read(8)[4:] in _FIRST
    if iso:
        _Boxes(file, size, name).walk(0, size, 0)
    file.seek(0)
    return _ISO if iso else _OF_FILES


@dataclass
class _Track:
    """What the tables of a track claim, whichever of several tables counts.

    Attributes:
        samples: Of tables that have a size for each.
        equal: Of tables of one size, or of none.
        values: Whether it is sound of one value a sample, of which FFmpeg makes runs.
        edits: Entries of edit lists.
        chunks: Of samples.
        longest: The most samples of a chunk.
    """

    samples: int = 0
    equal: int = 0
    values: bool = True
    edits: int = 1
    chunks: int = 0
    longest: int = 0

    @property
    def all_samples(self) -> int:
        """Those of which FFmpeg makes entries."""
        return self.samples + (0 if self.values else self.equal)


class _Boxes:
    """The boxes of a file, from its beginning to its end."""

    def __init__(self, file: Any, size: int, name: str) -> None:
        self._file, self._size, self._name = file, size, name
        self._tracks, self._count = [_Track()], 0

    def walk(self, start: int, stop: int, depth: int) -> None:
        """Read all boxes from one byte of the file to another."""
        for at, kind, body, end in self._boxes(start, stop):
            self._count += 1
            if depth > MOST_DEPTH or self._count > MOST_BOXES:
                raise self._wrong(f"has more than {MOST_BOXES:,} boxes, or {MOST_DEPTH} in a row")
            if kind in (b"trak", b"traf"):
                self._tracks.append(_Track())
            if kind in _TABLES:
                self._table(kind, body, end)
            elif kind in _INSIDE:
                self.walk(body, end, depth + 1)
            elif kind not in _DATA:
                self._search(at, end)
        if depth == 0:
            self._check()

    def _boxes(self, start: int, stop: int) -> Iterator[tuple[int, bytes, int, int]]:
        """Where each box begins, its name, where its content begins, and where it ends."""
        while start + 8 <= stop:
            head = self._read(start, 16)
            size, kind, body = int.from_bytes(head[:4], "big"), head[4:8], start + 8
            if size == 1:
                size, body = int.from_bytes(head[8:16], "big"), start + 16
            end = stop if size == 0 else start + size
            if size and size < body - start:
                self._search(start, stop)  # FFmpeg stops, or reads on in another way
                return
            yield start, kind, body, min(end, stop)
            start = end

    def _search(self, start: int, stop: int) -> None:
        """Read what may be tables in bytes of an unknown form."""
        while start < stop:
            data = self._read(start, min(WINDOW, stop - start) + 3)
            for found in _NAMES.finditer(data):
                if start + found.end() <= stop:
                    self._table(found[0], start + found.end(), stop)
            start += WINDOW

    def _table(self, kind: bytes, body: int, stop: int) -> None:
        where, each = _TABLES[kind]
        head = self._read(body, 24)
        count = int.from_bytes(head[where : where + 4], "big")
        first, track = int.from_bytes(head[4:8], "big"), self._tracks[-1]
        if kind == b"cmov":
            raise self._wrong("has a compressed header (cmov)")
        if kind == b"hdlr":
            track.values &= head[8:12] == b"soun" or head[4:8] == b"dhlr"
            return
        constant = kind == b"stsz" and first
        if kind == b"trun":
            each = 4 * (int.from_bytes(head[1:4], "big") & _FIELDS).bit_count()
        if count * (first if constant else each) > self._size:
            raise self._wrong(f"has a table '{kind.decode()}' of {count:,} entries, more than fit")
        if constant or (kind == b"trun" and not each):
            track.equal += count
            track.values &= kind == b"stsz"
        elif kind in (b"stsz", b"stz2", b"trun"):
            track.samples += count
        elif kind == b"stts":
            track.values &= head[4:8] == b"\0\0\0\1" and head[12:16] == b"\0\0\0\1"
        elif kind == b"elst":
            track.edits += count
        elif kind in (b"stco", b"co64"):
            track.chunks += count
        elif kind == b"stsc":
            whole = max(0, min(count, (stop - body - 8) // 12))
            entries = np.frombuffer(self._read(body + 8, 12 * whole), ">u4").reshape(-1, 3)
            track.longest = max(track.longest, int(entries[:, 1].max(initial=0)))

    def _check(self) -> None:
        samples = sum(track.all_samples for track in self._tracks)
        if samples > MOST_SAMPLES:
            raise self._wrong(f"claims {samples:,} samples, expected {MOST_SAMPLES:,} at most")
        edited = sum(track.all_samples * track.edits for track in self._tracks)
        runs = sum(t.chunks * -(-t.longest // RUN) for t in self._tracks if t.values)
        if max(edited, runs) > MOST_PIECES:
            raise self._wrong(
                f"claims {max(edited, runs):,} pieces by its edits or its chunks, expected"
                f" {MOST_PIECES:,} at most"
            )

    def _read(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        data: bytes = self._file.read(size)
        return data

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self._name} {what}; it is damaged or hostile: convert it anew")
