"""A picture is the same however it is given, and what is none is one line."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import InputError
from edgevlm.runtimes.loops import images

SPEC = ImageSpec(8, 8, 1, 1, "last", 1, "bilinear", (0.5,) * 3, (0.5,) * 3)
TURNED, MIRRORED = 6, 2  # EXIF orientations


def corners(size=(40, 30)):
    """A picture whose four corners differ."""
    picture = Image.new("RGB", size, "white")
    for box, color in (((0, 0), "red"), ((20, 0), "lime"), ((0, 15), "blue")):
        picture.paste(color, (*box, box[0] + 20, box[1] + 15))
    return picture


class Raising:
    """An object with `read` that fails as no file does."""

    def read(self, size=-1):
        raise RuntimeError("gone")


class Nameless(os.PathLike):
    """A path without a text."""

    def __fspath__(self):
        return 5


def released():
    """A view of nothing."""
    view = memoryview(b"picture")
    view.release()
    return view


@pytest.fixture(params=[1, TURNED, MIRRORED])
def file(request, tmp_path):
    """A PNG with an EXIF orientation, half transparent, and what it looks like."""
    path, exif = tmp_path / "picture.png", Image.Exif()
    exif[0x0112] = request.param
    picture = corners().convert("RGBA")
    picture.putalpha(128)
    picture.save(path, exif=exif)
    white = Image.new("RGBA", picture.size, "white")
    seen = Image.alpha_composite(white, picture).convert("RGB")
    turns = {TURNED: Image.Transpose.ROTATE_270, MIRRORED: Image.Transpose.FLIP_LEFT_RIGHT}
    return path, seen.transpose(turns[request.param]) if request.param in turns else seen


def test_every_way_in_gives_one_picture(file):
    path, expected = file
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    data = path.read_bytes()
    used = io.BytesIO(data)
    used.read()
    ways = {
        "text": str(path), "path": path, "bytes": data, "bytearray": bytearray(data),
        "memoryview": memoryview(data), "BytesIO": io.BytesIO(data), "read before": used,
        "Pillow": Image.open(path), "array": upright, "fractions": upright / 255,
        "16 bit": upright.astype(np.uint16) * 257,
    }  # fmt: skip
    with path.open("rb") as opened:
        ways["open file"] = opened
        for name, way in ways.items():
            assert np.array_equal(np.asarray(images.load(way)), np.asarray(expected)), name
            if not hasattr(way, "read"):
                assert np.array_equal(images.views([way], SPEC), images.views([expected], SPEC))
        assert not opened.closed


class Stream:
    """A response of a server: it has `read` alone."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


def test_a_stream_that_cannot_seek_is_read(file):
    path, expected = file
    assert np.array_equal(np.asarray(images.load(Stream(path.read_bytes()))), np.asarray(expected))


def test_a_stream_is_never_whole_in_memory():
    """A budget asks before a picture is decoded; the bytes wait on disk."""

    class Long:
        pieces = 0

        def read(self, size):
            self.pieces += 1
            return bytes(size) if self.pieces <= 100 else b""

    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="not an image that can be read"):
            images.load(Long())
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_pillow_image_stays_as_it_was(file):
    path, _ = file
    picture = Image.open(path)
    images.load(picture)
    assert (picture.mode, picture.size) == ("RGBA", (40, 30))
    assert picture.getexif() == Image.open(path).getexif()


def test_numbers_of_any_type_are_the_same_picture():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for values in (
        grey, grey[..., None], np.stack([grey] * 3, -1), grey.astype(np.int64), grey / 255,
        (grey / 255).astype(np.float32), grey.astype(np.float32), grey.astype(np.int32) * 257,
        Image.fromarray((grey / 255).astype(np.float32)), Image.fromarray(grey.astype(np.float32)),
        Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey.astype(np.int32)),
    ):  # fmt: skip
        loaded = np.asarray(images.load(values))
        assert np.array_equal(loaded, np.stack([grey] * 3, -1)), getattr(values, "dtype", values)
    black_and_white = np.eye(4, dtype=bool)
    assert np.asarray(images.load(black_and_white))[..., 0].tolist() == (255 * np.eye(4)).tolist()


def test_bytes_with_gaps_are_read(tmp_path):
    corners().save(file := io.BytesIO(), "PNG")
    data = file.getvalue()
    spaced = bytes(letter for each in data for letter in (each, 0))
    assert images.load(memoryview(spaced)[::2]).tobytes() == corners().tobytes()


def test_a_float_file_of_0_to_1_is_not_black(tmp_path):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "float.tif")
    loaded = np.asarray(images.load(tmp_path / "float.tif"))[..., 0]
    assert np.array_equal(loaded, np.rint(values * 255))


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (Image.new("RGB", (0, 10)), "the Pillow image has 0x10 pixels, expected at least one"),
        (Image.new("1", (10000, 10000)), "the Pillow image has 10000x10000 pixels; expected at"),
        (Image.new("L", (70000, 1)), "the Pillow image has 70000x1 pixels; expected at most"),
        (np.zeros((0, 10, 3), np.uint8), "the array has 10x0 pixels"),
        (np.zeros((8000, 8000), np.uint8), "the array has 8000x8000 pixels; expected at most 50"),
        (np.zeros((3, 64, 64)), "the array has the shape [3, 64, 64], expected [height, width] or"
         " [height, width, channels] with 1 to 4 channels; the channels come last"),
        (np.zeros((2, 8, 8, 3)), "the array has the shape [2, 8, 8, 3], expected [height, width]"),
        (np.full((4, 4), np.nan), "the array has values from nan to nan, expected 0 to 1 or 0 to"),
        (np.full((4, 4), -1), "the array has values from -1 to -1, expected 0 to 255 or 0 to"),
        (np.full((4, 4), 1e6), "the array has values from 1e+06 to 1e+06, expected 0 to 1 or"),
        (np.zeros((4, 4), complex), "the array has numbers of type complex128, expected integers"),
        (Image.new("F", (4, 4), -3.0), "the Pillow image has values from -3 to -3, expected"),
        (None, "expected an image: a path, bytes, an open file, an array or a Pillow image, got"
         " NoneType"),
        (7, "expected an image: a path, bytes, an open file, an array or a Pillow image, got int"),
        (np.broadcast_to(np.uint8(0), (10**6, 10**6)), "the array has 1000000x1000000 pixels; exp"),
        (np.broadcast_to(0.5, (10**6, 10**6, 3)), "the array has 1000000x1000000 pixels; expected"),
        (Raising(), "the image (Raising) cannot be read: gone"),
        (Nameless(), "the path of the image cannot be read: "),
        (released(), "the image cannot be read: operation forbidden on released memoryview"),
        (b"", "the image of 0 bytes is empty"),
        (b"nonsense" * 10**5, "the image of 800,000 bytes is not an image that can be read"),
        (io.StringIO("text"), "the image (StringIO) is open as text; open it with mode 'rb'"),
        ("https://example.org/a.jpg", "'https://example.org/a.jpg' is an address; fetch it, and"),
        ("data:image/png;base64," + "A" * 10**6, "is an address; fetch it, and give a path or"),
        ("zero\0byte.jpg", "is not the name of a file"),
        ("", "no image at ''"),
        ("/dev/null", "'/dev/null' is not a regular file; save the image to a file first"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_one_short_line(picture, text):
    with pytest.raises(InputError) as error:
        images.load(picture)
    assert text in str(error.value)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_a_pillow_image_that_is_closed_or_cut_is_one_line(tmp_path):
    corners().save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    cut = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()[:90]))
    for picture in (closed, cut):
        with pytest.raises(InputError, match=r"^the Pillow image cannot be read as an image: "):
            images.load(picture)


def test_transparency_is_the_same_in_strips():
    side = 700  # more than one strip
    grey = np.linspace(0, 255, side * side).astype(np.uint8).reshape(side, side)
    pixels = np.stack([grey, grey.T, grey, grey.T], -1)
    picture = Image.fromarray(pixels)
    white = Image.new("RGBA", picture.size, "white")
    expected = np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
    assert np.array_equal(np.asarray(images.load(picture)), expected)


def test_a_bundle_answers_alike_whatever_it_is_given(loop):
    from edgevlm.api import Model

    photo = Path(__file__).parents[3] / "edgevlm" / "photos" / "flower.jpg"
    with Image.open(photo) as opened:
        array = np.asarray(opened)
    ways = (
        photo,
        str(photo),
        photo.read_bytes(),
        array,
        [photo],
        (bytearray(array.size) and array,),
    )
    answers = {Model(loop).generate(way, "What?", max_new_tokens=4).token_ids for way in ways}
    assert len(answers) == 1
