"""Pickers of frames, on frames of which the right choice is known, and on a video."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError, RecipeError
from edgevlm.planning.methods import choose_picker
from edgevlm.recipe import Recipe
from edgevlm.registry import METHODS
from edgevlm.runtimes.loops.images import load_clip
from edgevlm.runtimes.loops.images.picking import Picker, picker_of

av = pytest.importorskip("av")
NAMES = METHODS.names("input")


def greys(*values):
    return np.stack([np.full((32, 32, 3), value, np.uint8) for value in values])


def picked(name, small, frames):
    return list(METHODS.load(name, "input").Method()(small, frames))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("count", "frames"), [(2, 2), (5, 4), (16, 4), (9, 9)])
def test_as_many_frames_as_asked_each_once_in_order(name, count, frames):
    rng = np.random.default_rng(count)
    for small in (greys(*[7] * count), rng.integers(0, 255, (count, 32, 32, 3), np.uint8)):
        chosen = picked(name, small, frames)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == frames
        assert 0 <= chosen[0] <= chosen[-1] < count


def test_a_frame_of_each_scene():
    small = greys(*[10] * 7, *[200] * 2, *[90] * 3)
    assert picked("scene_change", small, 3) == [3, 7, 10]


def test_more_frames_where_more_moves():
    small = greys(*[10] * 20, *range(10, 250, 24))
    chosen = picked("motion", small, 6)
    assert chosen[0] == 0
    assert sum(index >= 19 for index in chosen) == 5
    assert chosen[-1] == 29


def test_a_still_is_uniform():
    assert picked("motion", greys(*[5] * 13), 4) == picked("uniform", greys(*[5] * 13), 4)


@pytest.fixture(scope="module", params=["mkv", "m4v"])
def video(request, tmp_path_factory):
    """Three scenes of 10, 20 and 30 frames, 10 a second; of m4v without time stamps."""
    path = tmp_path_factory.mktemp("scenes") / f"scenes.{request.param}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for grey in [0] * 10 + [120] * 20 + [240] * 30:
            pixels = np.full((48, 64, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_image(Image.fromarray(pixels))))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", NAMES)
def test_frames_of_a_video_are_picked(video, name):
    method = METHODS.load(name, "input").Method()
    picker = Picker(method, method.candidates(3) if name == "uniform" else 30)
    frames, times, duration = load_clip(video, 3, picker=picker)
    shades = [round(np.asarray(frame).mean() / 120) for frame in frames]
    assert len(shades) == 3
    assert times == sorted(times)
    assert duration == pytest.approx(6.0, abs=0.1)
    if name == "scene_change":
        assert shades == [0, 1, 2]
        assert 0 < times[0] < 1 < times[1] < 3 < times[2] < 6
    if name == "key_frames":  # one each second
        assert all(abs(time - round(time)) < 0.01 for time in times)
    if name == "uniform":
        plain = load_clip(video, 3)
        assert times == plain[1] == pytest.approx([0, 3, 5.9], abs=0.11)


def test_a_plan_says_what_picks():
    still = ImageSpec(8, 8, 1, 1, "first", 1, "bilinear", (0.5,) * 3, (0.5,) * 3)
    image = replace(still, frames=3)
    chosen = choose_picker(Recipe(methods=("motion@input:look=7",)), image)
    assert (chosen.picker, chosen.candidates) == ("motion", 7)
    picker = picker_of(chosen)
    assert (picker.candidates, type(picker.method).__module__) == (
        7,
        "edgevlm.compress.input.motion",
    )
    assert picker_of(image) is None
    with pytest.raises(RecipeError, match=r"^method 'motion': got look=2, expected 3 \(--frames\)"):
        choose_picker(Recipe(methods=("motion@input:look=2",)), image)
    with pytest.raises(PlanError, match=r"^motion at site input picks frames of a video, and the"):
        choose_picker(Recipe(methods=("motion@input",)), still)
