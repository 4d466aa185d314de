"""Tables of an ISO file that claim more than it holds, and files of other formats."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

from edgevlm.errors import InputError
from edgevlm.runtimes.containers import formats_of
from edgevlm.runtimes.loops.images import load_clip

av = pytest.importorskip("av")


def clip(form="mp4", count=30, **options):
    """30 frames of mpeg4, 3 seconds."""
    file = io.BytesIO()
    with av.open(file, "w", format=form, options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(count):
            pixels = np.full((48, 64, 3), 8 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def with_table(data, name, body):
    """The same file, the content of its first table of a name begun anew."""
    at = data.index(name) + 4
    return data[:at] + body + data[at + len(body) :]


def box(name, content):
    return struct.pack(">I", 8 + len(content)) + name + content


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        (b"stsz", struct.pack(">III", 0, 1, 85_000_000), "'stsz' of 85,000,000 entries, more"),
        (b"stsz", struct.pack(">III", 0, 0, 85_000_000), "'stsz' of 85,000,000 entries, more"),
        (b"stts", struct.pack(">II", 0, 2**31), "'stts' of"),
        (b"stsc", struct.pack(">II", 0, 2**31), "'stsc' of"),
        (b"stco", struct.pack(">II", 0, 2**31), "'stco' of"),
    ],
)
def test_a_table_that_claims_more_than_the_file_holds(name, body, said):
    with pytest.raises(InputError, match=rf"^the video of [\d,]+ bytes has a table {said}"):
        load_clip(with_table(clip(), name, body), 4)


@pytest.mark.parametrize("within", [b"udta", b"free", b"stsd", b"abcd"])
def test_a_table_anywhere_is_a_table(within):
    hidden = box(within, box(b"stsz", struct.pack(">III", 0, 1, 85_000_000)))
    data = clip()
    for hostile in (data + hidden, data[: data.index(b"moov") - 4] + hidden):
        with pytest.raises(InputError, match="entries, more than fit"):
            formats_of(io.BytesIO(hostile), "x")


def test_samples_without_bytes_and_edits_of_many_samples():
    empty = box(b"moof", box(b"traf", box(b"trun", struct.pack(">II", 0, 5_000_000)) * 2))
    first = box(b"ftyp", b"isom")
    with pytest.raises(InputError, match=r"claims 10,000,000 samples, expected 4,194,304 at most"):
        formats_of(io.BytesIO(first + empty), "x")
    sizes = box(b"stsz", struct.pack(">III", 0, 0, 10_000) + bytes(40_000))
    edits = box(b"elst", struct.pack(">II", 0, 1_000) + bytes(12_000))
    with pytest.raises(InputError, match=r"claims 10,010,000 pieces"):
        formats_of(io.BytesIO(first + box(b"trak", edits + sizes)), "x")
    nested = b""
    for _ in range(40):
        nested = box(b"moov", nested)
    with pytest.raises(InputError, match="16 in a row"):
        formats_of(io.BytesIO(first + nested), "x")
    with pytest.raises(InputError, match="compressed header"):
        formats_of(io.BytesIO(first + box(b"moov", box(b"cmov", b""))), "x")


def test_an_hour_of_sound_of_single_values_is_no_claim():
    """PCM of a camera: 1.7e8 samples, of which FFmpeg makes runs."""
    tables = (
        box(b"hdlr", struct.pack(">II4s", 0, 0, b"soun")),
        box(b"stts", struct.pack(">IIII", 0, 1, 170_000_000, 1)),
        box(b"stsz", struct.pack(">III", 0, 2, 170_000_000)),
        box(b"stsc", struct.pack(">IIIII", 0, 1, 1, 48_000, 1)),
        box(b"stco", struct.pack(">II", 0, 3_600) + bytes(4 * 3_600)),
    )

    class Large(io.BytesIO):
        """A file with media of 1 GB, which is not read."""

        def seek(self, at, whence=0):
            return 10**9 if whence == 2 else super().seek(at, whence)

    data = box(b"ftyp", b"isom") + box(b"moov", box(b"trak", b"".join(tables)))
    assert formats_of(Large(data), "x") == "mov"


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("mp4", {}), ("mov", {}), ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("matroska", {}), ("avi", {}), ("mpegts", {}),
        ("nut", {}), ("asf", {}),
    ],
)  # fmt: skip
def test_formats_are_read_as_before(form, options):
    data = clip(form, **options)
    assert (formats_of(io.BytesIO(data), "x") == "mov") == (form in ("mp4", "mov"))
    pictures, _, duration = load_clip(data, 4)
    assert [round(np.asarray(p).mean() / 8) for p in pictures] == [0, 10, 19, 29]
    assert round(duration, 1) == 3.0
