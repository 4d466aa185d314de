from __future__ import annotations

import json
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import InputError
from edgevlm.runtimes.loops import images

ROOT = Path(__file__).resolve().parents[3]
FLOWER = ROOT / "edgevlm" / "photos" / "flower.jpg"
ODD = ROOT.parent / "shared" / "data" / "odd_images.tar.gz"


def png(path: Path, width: int, height: int) -> Path:
    """A PNG whose header claims a size, and which has almost no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


def refused(path: Path) -> str:
    """The one line with which `path` is refused."""
    with pytest.raises(InputError) as error:
        images.load(path)
    assert "\n" not in str(error.value).strip()
    return str(error.value)


def refused_of(picture: object) -> str:
    """The one line with which anything else is refused."""
    with pytest.raises(InputError) as error:
        images.load(picture)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_bomb_is_refused_before_its_pixels_are_read(tmp_path):
    bomb = png(tmp_path / "bomb.png", 100_000, 100_000)
    assert "has too many pixels; expected at most 50 million and 65535 a side" in refused(bomb)


def test_a_huge_picture_is_refused_with_its_size(tmp_path):
    huge = png(tmp_path / "huge.png", 10_000, 8_000)
    assert "has 10000x8000 pixels; expected at most 50 million" in refused(huge)


@pytest.mark.parametrize("size", [(40_000_000, 1), (1, 40_000_000)])
def test_a_line_of_millions_of_pixels_is_refused(tmp_path, size):
    line = png(tmp_path / "line.png", *size)
    expected = f"has {size[0]}x{size[1]} pixels; expected at most 50 million and 65535 a side"
    assert expected in refused(line)


def test_a_picture_without_its_pixels_is_refused(tmp_path):
    assert "cannot be read as an image" in refused(png(tmp_path / "short.png", 64, 64))


def test_a_truncated_jpeg_is_refused(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(FLOWER.read_bytes()[:20_000])
    assert "cannot be read as an image: image file is truncated" in refused(path)


@pytest.mark.parametrize(
    ("name", "data", "meaning"),
    [("empty.jpg", b"", "is empty"), ("text.png", b"not a picture\n", None),
     ("noise.jpg", bytes(range(256)) * 9, None), ("weights.gif", b"GIF89a", None),
     ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9"/>', "is an SVG drawing"),
     ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "is PostScript"),
     ("page.pdf", b"%PDF-1.4\n", "is a PDF document"), ("a.jpg", b"<html>", "is a web page"),
     ("a.jxl", b"\xff\x0a\xfa", "is JPEG XL"), ("a.psd", b"8BPS\0\1", "is a Photoshop document"),
     ("a.jpg", b"\0\0\0\x20ftypisom", "is a video; give it as video (--video FILE)"),
     ("a.png", b"version https://git-lfs.github.com/spec/v1",
      "is a Git LFS pointer, not the file; run 'git lfs pull'")],
)  # fmt: skip
def test_what_is_no_picture_is_refused_by_name(tmp_path, name, data, meaning):
    path = tmp_path / name
    path.write_bytes(data)
    expected = f"'{path}' {meaning or 'is not an image that can be read'}"
    if meaning is None or not ("; " in meaning or meaning == "is empty"):
        expected += "; expected JPEG, PNG, WEBP, GIF, BMP, TIFF, JPEG2000, AVIF, PPM, ICO, TGA"
        expected += ", or HEIC with 'edgevlm[heic]'"
    assert refused(path) == expected


def test_heic_is_named_with_what_reads_it(tmp_path, monkeypatch):
    path = tmp_path / "phone.heic"
    path.write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    assert refused(path) == (
        f"'{path}' is HEIC, and reading it needs pillow-heif; pip install 'edgevlm[heic]'"
    )


def test_heic_is_read(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    picture = Image.open(FLOWER).resize((64, 48))
    heif.from_pillow(picture).save(tmp_path / "phone.heic", quality=95)
    loaded = images.load(tmp_path / "phone.heic")
    assert np.abs(np.asarray(loaded, float) - np.asarray(picture, float)).mean() < 8
    assert "cannot be read as an image" in refused_of((tmp_path / "phone.heic").read_bytes()[:900])


def test_a_missing_file_and_a_folder(tmp_path):
    assert refused(tmp_path / "no.jpg") == f"no image at '{tmp_path / 'no.jpg'}'"
    assert refused(tmp_path) == f"'{tmp_path}' is a folder, expected an image"


def save(picture: Image.Image, path: Path) -> Image.Image:
    """`picture` after a round through a file and `load`."""
    picture.save(path)
    return images.load(path)


def test_transparency_is_over_white(tmp_path):
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    loaded = save(picture, tmp_path / "alpha.png")
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), (255, 255, 255)]

    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 1
    loaded = save(palette, tmp_path / "palette.png")
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(0, 0, 255), (255, 255, 255)]

    grey = save(Image.new("LA", (1, 1), (0, 0)), tmp_path / "la.png")
    assert grey.getpixel((0, 0)) == (255, 255, 255)


def chunks(*parts: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    each = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
            for n, d in (*parts, (b"IEND", b"")))  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(each)


def drawn(depth: int, kind: int, row: bytes) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """Header and pixels of a PNG, 2 wide and 1 high."""
    header = struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0)
    return (b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + row))


@pytest.mark.parametrize(
    ("depth", "kind", "row", "clear", "other"),
    [(1, 0, b"\x40", b"\0\0", (255,) * 3), (2, 0, b"\x60", b"\0\1", (170,) * 3),
     (4, 0, b"\x12", b"\0\1", (34,) * 3), (8, 0, b"\1\2", b"\0\1", (2,) * 3),
     (16, 0, b"\x12\x34\x56\x78", b"\x12\x34", (0x56,) * 3),
     (8, 2, b"\1\2\3\4\5\6", b"\0\1\0\2\0\3", (4, 5, 6)),
     (16, 2, b"\1\x99\2\x99\3\x99\4\0\5\0\6\0", b"\1\x99\2\x99\3\x99", (4, 5, 6))],
)  # fmt: skip
def test_the_transparent_colour_of_a_png_of_any_depth_is_white(depth, kind, row, clear, other):
    header, pixels = drawn(depth, kind, row)
    loaded = images.load(chunks(header, (b"tRNS", clear), pixels))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), other]


def test_a_palette_with_transparency_is_over_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255, 0, 255], "RGBA")
    picture.putpixel((1, 0), 1)
    loaded = images.load(picture)
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]


def test_damaged_exif_leaves_the_picture_as_it_lies():
    header, pixels = drawn(8, 0, b"\1\2")
    loaded = images.load(chunks(header, (b"eXIf", b"damaged"), pixels))
    assert loaded.getpixel((1, 0)) == (2, 2, 2)


def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for name in ("ramp.png", "ramp.tif", "ramp.pgm"):
        loaded = save(Image.fromarray(values), tmp_path / name)
        assert np.array_equal(np.asarray(loaded)[..., 0], values // 256), name


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "I", "F"])
def test_other_modes_become_rgb(tmp_path, mode):
    picture = Image.open(FLOWER).convert("L" if mode in "IF" else "RGB").convert(mode)
    loaded = save(picture, tmp_path / "picture.tif")
    assert loaded.mode == "RGB"
    assert loaded.size == picture.size
    assert 30 < np.asarray(loaded).mean() < 225


def test_views_take_pictures_of_any_mode():
    spec = ImageSpec(4, 4, 1, 1, "last", 1, "lanczos", (0.5,) * 3, (0.5,) * 3)
    for mode in ("RGBA", "L", "P", "CMYK", "I;16"):
        assert images.views([Image.new(mode, (9, 5))], spec).shape == (1, 3, 4, 4)


def test_frames_of_a_group_are_one_view_and_the_last_fills_it_up():
    spec = ImageSpec(2, 2, 1, 1, "last", 3, "bilinear", (0.0,) * 3, (1.0,) * 3, depth=2)
    frames = [Image.new("RGB", (2, 2), (51 * shade, 0, 255)) for shade in (1, 3, 5)]
    views = images.views(frames, spec)
    assert views.shape == (2, 6, 2, 2)
    assert spec.pixel_bytes == views.nbytes
    expected = [[0.2, 0, 1, 0.6, 0, 1], [1, 0, 1, 1, 0, 1]]
    np.testing.assert_allclose(views[:, :, 1, 0], expected, atol=1e-6)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Images that break decoders, with what Pillow does with each."""
    if not ODD.is_file():
        pytest.skip("the archive of odd images is not in this checkout")
    folder = tmp_path_factory.mktemp("odd")
    with tarfile.open(ODD) as archive:
        archive.extractall(folder, filter="data")
    root = folder / "odd_images"
    lines = (root / "manifest.jsonl").read_text().splitlines()
    return root / "files", [json.loads(line) for line in lines]


def test_odd_images_load_or_are_refused_in_one_line(odd):
    folder, entries = odd
    assert len(entries) > 100
    for entry in entries:
        path = folder / entry["path"]
        if entry["result"] == "ok":
            width, height = entry["size"]
            turned = (entry.get("orient") or 1) >= 5
            size = (height, width) if turned else (width, height)
            assert images.load(path).size == size, path
        else:
            refused(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_odd_images_leave_stderr_and_memory_alone(odd):
    folder, entries = odd
    script = (
        "import pathlib, sys\n"
        "from edgevlm.errors import InputError\n"
        "from edgevlm.runtimes.loops import images\n"
        "for path in sys.stdin.read().splitlines():\n"
        "    try:\n"
        "        images.load(path)\n"
        "    except InputError:\n"
        "        pass\n"
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    paths = "\n".join(str(folder / entry["path"]) for entry in entries)
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", script], input=paths, cwd=ROOT,
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert int(done.stdout) < 300_000  # kB; getrusage would count this process too


def test_all_orientations_give_one_picture(odd):
    folder, _ = odd
    pictures = [images.load(p) for p in sorted((folder / "bad_exif").glob("Portrait_*.jpg"))]
    assert len(pictures) == 9
    small = [np.asarray(p.resize((45, 60)), np.float32) for p in pictures]
    for other in small[1:]:
        assert np.abs(other - small[0]).mean() < 3
