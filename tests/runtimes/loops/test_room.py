"""Decoding within so many bytes: a JPEG is reduced, everything else fits or is refused."""

from __future__ import annotations

import io
import weakref
from functools import partial

import numpy as np
import pytest
from PIL import Image

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import InputError
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.spelling import check_length, claim

WIDTH, HEIGHT = 1600, 1200
WHOLE = 4 * WIDTH * HEIGHT


def picture(kind="JPEG", mode="RGB", **options):
    """A picture of two megapixels as the bytes of a file."""
    small = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    made = Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)
    made.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def room(free, width=100, height=100):
    """A budget that leaves so many bytes."""
    return images.Room(lambda size: max(0, size - free), width, height)


@pytest.mark.parametrize(
    ("free", "size"),
    [(10**8, (1600, 1200)), (7 * 10**6, (800, 600)), (5 * 10**6, (400, 300)),
     (4.4 * 10**6, (200, 150))],
)  # fmt: skip
def test_a_jpeg_is_decoded_as_large_as_fits(free, size):
    data = picture(quality=95)
    loaded = images.load(data, room(int(free)))
    assert loaded.size == size
    whole = images.load(data).resize(size, Image.Resampling.BOX)
    assert np.abs(np.asarray(loaded, float) - np.asarray(whole, float)).mean() < 2


def test_a_turned_jpeg_is_reduced_to_what_is_shown():
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = images.load(picture(exif=exif), room(10 * 10**6, width=500, height=700))
    assert loaded.size == (600, 800)


def test_a_jpeg_keeps_the_pixels_that_it_is_resized_to():
    with pytest.raises(InputError, match=r"^the image of [\d,]+ bytes takes \d+ MB to decode, "):
        images.load(picture(), room(7 * 10**6, width=900, height=900))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (partial(picture, "PNG"), "takes 13 MB to decode, 8 MB more than the memory budget leaves"),
        (partial(picture, progressive=True, subsampling=0), "MB more than the memory budget"),
        (partial(picture, "WEBP"), "MB more than the memory budget leaves; raise --memory by "),
        (partial(picture, "PNG", "RGBA"), "takes 20 MB to decode, 15 MB more than"),
        (
            partial(np.zeros, (HEIGHT, WIDTH, 3), np.float32),
            "the array takes 81 MB to decode, 76 MB more",
        ),
        (
            partial(Image.new, "L", (WIDTH, HEIGHT)),
            "the Pillow image takes 24 MB to decode, 19 MB more",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_it_takes(make, text):
    data = make()
    with pytest.raises(InputError) as error:
        images.load(data, room(5 * 10**6))
    assert text in str(error.value)
    assert images.load(data, room(10**9)).size == (WIDTH, HEIGHT)


def test_a_turned_png_claims_its_copy_at_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture("PNG", exif=exif)
    with pytest.raises(InputError, match="takes 20 MB to decode, 8 MB more than"):
        images.load(data, room(12 * 10**6 + 10**5))
    assert images.load(data, room(21 * 10**6)).size == (HEIGHT, WIDTH)


@pytest.mark.parametrize(("mode", "each"), [("RGB", 8), ("F", 12), ("L", 9), ("RGBA", 12)])
def test_a_tiff_claims_its_strip_or_its_copy(mode, each):
    data = picture("TIFF", mode, compression="tiff_adobe_deflate")
    size = each * WIDTH * HEIGHT + len(data) + 4 * 100 * HEIGHT + 4 * 10**6
    with pytest.raises(InputError, match=f"takes {-(-size // 10**6)} MB to decode"):
        images.load(data, room(size - 1))
    assert images.load(data, room(size)).size == (WIDTH, HEIGHT)


def test_a_tiff_of_sixteen_bits_a_colour_claims_its_strip():
    picture = Image.new("RGB", (1000, 1000))
    picture.format, picture.tag_v2 = "TIFF", {258: (16, 16, 16), 277: 3}
    with pytest.raises(InputError, match="takes 15 MB to decode"):
        room(0).decode(picture, 0, 1, "it")


def test_a_picture_in_memory_that_is_rgb_takes_nothing():
    made = Image.new("RGB", (WIDTH, HEIGHT))
    assert images.load(made, room(0)) is made


def test_one_frame_at_a_time_is_in_memory():
    spec = ImageSpec(8, 8, 1, 1, "last", 4, "bilinear", (0.5,) * 3, (0.5,) * 3)
    alive = list[weakref.ref]()

    def frames():
        for shade in range(4):
            assert not any(frame() for frame in alive)
            made = [Image.new("RGB", (64, 64), (shade, 0, 0))]
            alive.append(weakref.ref(made[0]))
            yield made.pop()

    assert images.views(frames(), spec).shape == (4, 3, 8, 8)


class Letters:
    """A tokenizer with a token a letter, that notes the longest text it was given."""

    longest = 0

    def encode(self, text, add_special_tokens):
        self.longest = max(self.longest, len(text))
        return type("Encoding", (), {"ids": [0] * len(text)})


def test_a_prompt_beyond_the_context_is_not_tokenized_whole():
    tokenizer = Letters()
    with pytest.raises(InputError, match=r"^the turn has more than 4080 tokens, the context of 9"):
        check_length(tokenizer, "a" * 10**7, 2048, "the context of 9")
    assert tokenizer.longest == 4096
    check_length(tokenizer, "a" * 20_000, 20_000, "the context of 9")


def test_a_prompt_takes_memory_too():
    claim("a" * 10**5, 10**6, lambda size: max(0, size - 10**8))
    with pytest.raises(InputError) as error:
        claim("a" * 10**5, 10**6, lambda size: max(0, size - 5 * 10**7))
    assert str(error.value) == (
        "the prompt of 100,000 letters takes 81 MB to tokenize, 31 MB more than the memory budget"
        " leaves; raise --memory by 31 MB"
    )
