"""The budget with real files: the process's peak, read from outside, is never above it."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
QUESTION = ("--prompt", "What is this?", "--max-new-tokens", "4", "--json")
PHOTOS = {1: (1152, 864), 12: (4000, 3000), 50: (8160, 6120)}  # megapixels


@pytest.fixture
def asked(start):
    """Runs a bundle, and gives its output with the peak in bytes that /proc had last."""

    def ask(bundle, memory, *arguments):
        process = start("run", bundle, "--memory", f"{memory}MB", *arguments)
        status, peak = Path(f"/proc/{process.pid}/status"), 0
        while process.poll() is None:
            text = status.read_text() if status.exists() else ""
            if found := re.search(r"VmHWM:\s+(\d+) kB", text):
                peak = max(peak, int(found[1]) * 1024)
            time.sleep(0.003)
        out, err = process.communicate()
        return process.returncode, out, err, peak

    return ask


def smallest(asked, bundle):
    """The smallest budget of a bundle in MB, measured once."""
    _, _, err, _ = asked(bundle, 1, *QUESTION)
    return int(re.search(r"the smallest budget is (\d+) MB", err)[1]) + 2


def photo(folder, megapixels, kind, **options):
    """A picture of so many megapixels as a file."""
    small = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    made = Image.fromarray(small).resize(PHOTOS[megapixels], Image.Resampling.BILINEAR)
    made.save(path := folder / f"photo.{kind}", **options)
    return path


def kept(memory, done):
    """Whether it answered within the budget, or said in one line what it takes."""
    code, out, err, peak = done
    assert 0 < peak <= memory * 10**6, err
    if code == 0:
        assert json.loads(out.splitlines()[-1])["token_ids"]
        return True
    assert code == 1
    last = err.splitlines()[-1]
    assert re.search(r"MB more than the memory budget leaves; raise --memory by \d+ MB", last) or (
        re.search(r"the turn has .*tokens, the context of \d+ has room for", last)
    ), err
    return False


def test_a_photo_and_a_long_prompt_at_the_smallest_budget(exported, asked, tmp_path):
    bundle = exported.bundle.path
    memory = smallest(asked, bundle)
    picture = photo(tmp_path, 12, "jpg")
    assert kept(memory, asked(bundle, memory, "--image", picture, *QUESTION))
    long = ("--prompt", "What is this thing? " * 5000, *QUESTION[2:])
    assert not kept(memory, asked(bundle, memory, *long))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The embedded model for pictures and for clips, for each engine with budgets."""
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    made, folder = {}, tmp_path_factory.mktemp("inputs")

    def of(target, frames=1):
        if (target, frames) not in made:
            recipe = Recipe(tokens=24, target=target, frames=frames, block_size_bytes=3_000_000)
            path = folder / f"{target}-{frames}.edgevlm"
            made[target, frames] = export(recipe, path).bundle.path
        return made[target, frames]

    return of


TARGETS = ("onnx", "executorch")
KINDS = (("jpg", {}), ("jpg", {"progressive": True}), ("png", {"compress_level": 1}))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_photos_at_the_smallest_budget(bundles, asked, tmp_path, target):
    pytest.importorskip("executorch" if target == "executorch" else "onnxruntime")
    bundle = bundles(target)
    memory = smallest(asked, bundle)
    for megapixels in PHOTOS:
        for kind, options in (
            ("jpg", {}),
            ("jpg", {"progressive": True}),
            ("png", {"compress_level": 1}),
        ):
            path = photo(tmp_path, megapixels, kind, **options)
            answered = kept(memory, asked(bundle, memory, "--image", path, *QUESTION))
            assert answered or (megapixels > 1 and (options or kind == "png"))
    three = [part for _ in range(3) for part in ("--image", photo(tmp_path, 12, "png"))]
    assert kept(memory + 150, asked(bundle, memory + 150, *three, *QUESTION))
    for words in (50, 100, 200, 400, 10_000):
        text = ("--prompt", "word " * words, *QUESTION[2:])
        kept(memory, asked(bundle, memory, *text))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [(1920, 1080), (3840, 2160)])
def test_clips_at_the_smallest_budget(bundles, asked, tmp_path, target, size):
    av = pytest.importorskip("av")
    pytest.importorskip("executorch" if target == "executorch" else "onnxruntime")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        for shade in range(12):
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (20 * shade,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    bundle = bundles(target, frames=4)
    memory = smallest(asked, bundle)
    answered = [
        kept(memory + more, asked(bundle, memory + more, "--video", path, *QUESTION))
        for more in (0, 50, 250)
    ]
    assert answered[-1]
