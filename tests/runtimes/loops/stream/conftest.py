"""A tiny bundle that takes streams, and frames for it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edgevlm.runtimes.loops.stream import source
from edgevlm.runtimes.loops.stream.ring import Ring

SECONDS, RATE = 6, 5


@pytest.fixture(scope="module")
def streaming(loop_of):
    """Three frames of 64 tokens, all of which a stream keeps; a context of 576."""
    return loop_of(frames=3, stream=64, context=512)


@pytest.fixture(scope="session")
def pictures():
    """`pictures(count)`: as many pictures, none like another."""

    def make(count, seed=0):
        random = np.random.default_rng(seed)
        for _ in range(count):
            yield Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64))

    return make


@pytest.fixture(scope="session")
def coded():
    """Six seconds of MPEG-TS, 64 x 48 pixels, whose brightness says which second it is."""
    av, file = pytest.importorskip("av"), io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(SECONDS * RATE):
            pixels = np.full((48, 64, 3), 40 * (index // RATE), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="session")
def frames_of():
    """`frames_of(given, …)`: seconds and brightness of all frames of a source."""
    return _frames_of


def _frames_of(given, **options):
    """Seconds and brightness of all frames of a source."""
    settings = {"fps": 1.0, "pace": False, "depth": 1} | options
    ring = Ring(100, drops=False)
    source.start(given, ring, shrink=lambda picture: picture, **settings)
    found = []
    while not ring.ended:
        if (frames := ring.take(1)) is not None:
            brightness = [int(np.asarray(p).mean() / 40 + 0.5) for p in frames.pictures]
            found.append((tuple(round(s) for s in frames.seconds), tuple(brightness)))
    if ring.error is not None:
        raise ring.error
    return found
