"""A clip's frames, times and duration, and one line for what is no clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.images import load_clip

av = pytest.importorskip("av")
PHOTO = Path(__file__).resolve().parents[3] / "edgevlm" / "photos" / "flower.jpg"
RATE = 10


@pytest.fixture
def clip(tmp_path):
    """30 frames at 10 a second; frame i is grey of value 8 i."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(30):
            grey = np.full((48, 64, 3), 8 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_image(Image.fromarray(grey))))
        container.mux(stream.encode())
    return path


def test_frames_are_spread_evenly_with_their_times(clip):
    pictures, times, duration = load_clip(clip, 4)
    assert [round(t, 2) for t in times] == [0.0, 1.0, 1.9, 2.9]
    assert round(duration, 2) == 2.9
    shades = [np.asarray(p).mean() for p in pictures]
    np.testing.assert_allclose(shades, [0, 80, 152, 232], atol=6)
    assert {p.size for p in pictures} == {(64, 48)}


def test_all_frames_can_be_asked_for_but_not_more(clip):
    assert len(load_clip(clip, 30)[0]) == 30
    with pytest.raises(InputError, match=r"has 30 frames, the bundle needs 31$"):
        load_clip(clip, 31)


def test_a_cut_off_clip_is_one_line(clip):
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError) as error:
        load_clip(clip, 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: None, "no video at"),
        (lambda p: p.write_bytes(b""), "cannot be read as a video"),
        (lambda p: p.write_text("not a video"), "cannot be read as a video"),
        (lambda p: p.write_bytes(PHOTO.read_bytes()), "has 1 frames, the bundle needs 4"),
        (lambda p: p.mkdir(), "cannot be read as a video"),
    ],
)
def test_what_is_no_clip_is_one_line(tmp_path, make, text):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(InputError, match=text):
        load_clip(path, 4)
