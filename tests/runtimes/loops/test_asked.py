"""Frames picked by a question: runs around anchors, and likenesses of a real encoder bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.loops.images import load_clip
from edgevlm.runtimes.loops.images.asked import around_anchors, question_picker, scorer_of

av = pytest.importorskip("av")
QUESTION = "Where is the red ball?"
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


@pytest.fixture
def clip(tmp_path):
    """12 frames, each of two colours."""
    path = tmp_path / "colours.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 64, "yuv420p", 2_000_000
        for index in range(12):
            pixels = np.full((64, 64, 3), COLOURS[index % 6], np.uint8)
            pixels[: 5 * index] = COLOURS[(index + 2) % 6]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def scorer(embedder):
    return scorer_of(load_loop(embedder("tiny-clip").bundle.path, threads=1))


@pytest.mark.parametrize(
    ("scores", "frames", "picked"),
    [
        ([0, 0, 9, 8, 0, 0, 0, 5], 2, [2, 7]),  # 3 is beside the first anchor
        ([0, 0, 9, 8, 7, 0, 0, 0], 4, [0, 2, 3, 4]),  # anchors are apart by one
        ([3, 3, 3, 3], 4, [0, 1, 2, 3]),
        ([0] * 6 + [9] + [0] * 25, 8, [0, 1, 5, 6, 9, 10, 13, 14]),
        ([0] * 15 + [9], 1, [15]),
    ],
)
def test_runs_around_the_most_alike_that_are_apart(scores, frames, picked):
    found = around_anchors(np.array(scores, np.float64), frames)
    assert len(set(found)) == frames
    assert found == picked


def test_as_many_frames_as_asked_in_order():
    rng = np.random.default_rng(0)
    for count, frames in ((8, 8), (33, 8), (64, 16), (1024, 256), (5, 3)):
        found = around_anchors(rng.standard_normal(count), frames)
        assert found == sorted(set(found))
        assert len(found) == frames
        assert 0 <= found[0] <= found[-1] < count


def test_frames_of_a_video_are_those_most_like_the_question(scorer, clip):
    pictures, times, _ = load_clip(clip, 12)
    likeness = [scorer.classify(picture, [QUESTION, "no"]).labels for picture in pictures]
    logits = np.array([np.log(pair[0].score / pair[1].score) for pair in likeness])
    other = [scorer.classify(picture, ["no", "no"]).labels for picture in pictures]
    assert all(pair[0].score == pytest.approx(0.5) for pair in other)
    unit = lambda values: np.asarray(values) / np.linalg.norm(values)  # noqa: E731
    text = unit(scorer.embed_text(QUESTION))
    cosines = np.array([unit(scorer.embed([picture])) @ text for picture in pictures])
    assert np.ptp(logits) > 0
    _, found, _ = load_clip(clip, 3, picker=question_picker(scorer, QUESTION, 3))
    assert found == pytest.approx([times[index] for index in around_anchors(cosines, 3)])
    assert len(around_anchors(cosines, 3)) == 3


def test_a_bundle_without_texts_or_of_clips_is_refused(exported):
    with pytest.raises(InputError, match=r"compares no pictures with texts; give a bundle of CLIP"):
        scorer_of(load_loop(exported.bundle.path, threads=1))


@pytest.mark.parametrize("options", [("--image", "a.jpg"), ("--video", "a.mp4", "--memory", "9GB")])
def test_the_command_takes_a_picker_for_a_video_alone(run, exported, options):
    asked = ("run", exported.bundle.path, "--prompt", "x", "--picker", "b.edgevlm", *options)
    done = run(*asked)
    assert done.exit_code == 2
    assert "--picker picks frames of a --video, and" in " ".join(
        done.stderr.replace("│", " ").split()
    )


@pytest.mark.slow
def test_the_command_shows_the_picked_frames(run, embedder, clip, tmp_path):
    from edgevlm import api
    from edgevlm.recipe import Recipe

    out = tmp_path / "clips.edgevlm"
    api.export(Recipe(frames=8), out)
    asked = ("run", out, "--video", clip, "--prompt", QUESTION, "--threads", "1", "--json")
    done = run(*asked, "--picker", embedder("tiny-clip").bundle.path)
    assert done.exit_code == 0, done.stderr
    scorer = scorer_of(load_loop(embedder("tiny-clip").bundle.path, threads=1))
    pictures, _, _ = load_clip(clip, 8, picker=question_picker(scorer, QUESTION, 8))
    expected = api.load(out, threads=1).generate(pictures, QUESTION)
    assert json.loads(done.stdout)["token_ids"] == list(expected.token_ids)
    assert isinstance(pictures[0], Image.Image)
