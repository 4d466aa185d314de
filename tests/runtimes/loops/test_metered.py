"""What a file holds beside its pixels counts in a memory budget before it is read."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib

import pytest
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.runtimes.loops import images

FREE, MORE = 10 * 10**6, 30 * 10**6


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before=b"", after=b""):
    """A PNG of one pixel with further chunks."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0\7"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + after


def jpeg(segments):
    """A JPEG with further segments of 64 kB."""
    Image.new("RGB", (8, 8), "red").save(file := io.BytesIO(), "JPEG")
    piece = b"\xff\xe7" + struct.pack(">H", 65000) + bytes(64998)
    return file.getvalue()[:2] + piece * segments + file.getvalue()[2:]


def packed(texts):
    """Chunks of text, each a thousandth of what it unpacks to."""
    return b"".join(chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(10**6))) for n in texts)


PRIVATE = chunk(b"prVt", bytes(MORE))


@pytest.mark.parametrize(
    "data", [png(PRIVATE), png(after=PRIVATE), png(chunk(b"eXIf", bytes(MORE))),
             png(packed(range(30))), jpeg(MORE // 65000)],
    ids=["before", "after", "exif", "text", "segments"],
)  # fmt: skip
def test_metadata_larger_than_the_budget_is_not_read(data):
    tracemalloc.start()
    room = images.Room(lambda size: max(0, tracemalloc.get_traced_memory()[0] + size - FREE), 8, 8)
    try:
        with pytest.raises(InputError, match="and its metadata take more than the memory budget "):
            images.load(data, room)
        assert (
            tracemalloc.get_traced_memory()[1] < FREE + 3 * 10**6
        )  # a text is unpacked, and decoded
    finally:
        tracemalloc.stop()
    assert images.load(data).size in ((1, 1), (8, 8))


def test_a_file_that_fits_is_read_as_without_a_budget(tmp_path):
    for number, data in enumerate((png(packed(range(3))), jpeg(20))):
        (path := tmp_path / f"{number}").write_bytes(data)
        loaded = images.load(path, images.Room(lambda size: max(0, size - FREE), 8, 8))
        assert loaded.tobytes() == images.load(os.fspath(path)).tobytes()
