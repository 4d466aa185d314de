"""The judge sees what was drawn, and nothing else."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from edgevlm.evaluation.videos import shapes
from edgevlm.evaluation.videos.shapes import Prompt, Seen, draw, examples, judge, parse, prompts

RED = Prompt("red", "circle", "moves left", "white")


def drawn(prompt, seed=0):
    return draw(prompt, np.random.default_rng(seed))


@pytest.mark.parametrize("held_out", [True, False])
def test_the_judge_sees_what_was_drawn(held_out):
    rng = np.random.default_rng(5)
    asked = list(itertools.islice(examples(2, held_out=held_out), 60))
    assert [judge(draw(p, rng)).wrong(p) for p in asked] == [()] * 60


@pytest.mark.parametrize("motion", shapes.MOTIONS)
def test_every_other_motion_is_wrong(motion):
    seen = judge(drawn(Prompt("blue", "cross", motion)))
    wrong = {m for m in shapes.MOTIONS if seen.wrong(Prompt("blue", "cross", m))}
    assert wrong == set(shapes.MOTIONS) - {motion}


def test_every_other_shape_colour_and_ground_is_wrong():
    seen = judge(drawn(RED))
    assert seen == Seen("red", "circle", "moves left", "white")
    for shape in set(shapes.SHAPES) - {"circle"}:
        assert seen.wrong(Prompt("red", shape, "moves left")) == ("shape",)
    for colour in set(shapes.COLOURS) - {"red"}:
        assert seen.wrong(Prompt(colour, "circle", "moves left")) == ("colour",)
    assert seen.wrong(Prompt("red", "circle", "moves left", "black")) == ("ground",)


def test_a_clip_backwards_moves_the_other_way():
    assert judge(drawn(RED)[::-1]).motion == "moves right"
    assert judge(drawn(Prompt("red", "square", "grows"))[::-1]).motion == "shrinks"
    assert judge(drawn(RED).transpose(0, 2, 1, 3)).motion == "moves up"


def test_floats_of_0_to_1_are_bytes_divided_by_255():
    frames = drawn(RED, 3)
    assert judge(frames / 255) == judge(frames.astype(np.int16)) == judge(frames)


def test_little_noise_changes_nothing():
    noise = np.random.default_rng(0).normal(0, 6, drawn(RED).shape)
    assert judge(np.clip(drawn(RED) + noise, 0, 255).astype(np.uint8)) == judge(drawn(RED))


def test_noise_and_an_empty_ground_show_nothing():
    noise = np.random.default_rng(0).random((21, 64, 64, 3))
    assert judge(noise).shape is None
    assert judge(np.full((21, 64, 64, 3), 236, np.uint8)) == Seen(None, None, None, "white")


def test_a_shape_that_vanishes_jumps_or_melts_is_not_a_motion():
    frames = drawn(Prompt("red", "square", "stays still", "black"))
    gone = frames.copy()
    gone[15:] = frames[0, 0, 0]
    assert judge(gone).motion is None
    jumps = [np.roll(frame, 24 * (8 < at < 13), 0) for at, frame in enumerate(frames)]
    assert judge(np.stack(jumps)).motion is None
    half = frames.copy()
    rows, columns = np.nonzero((frames[0].astype(int) - frames[0, 0, 0]).max(-1) > 60)
    half[:, rows.min() : rows.max() + 1, columns.min() : int(columns.mean())] = frames[0, 0, 0]
    assert judge(half).shape is None


def test_diagonals_have_no_name():
    time = np.linspace(0, 1, 21)[:, None]
    cover = shapes.outline("circle", np.array([20.0, 20.0]) + 20 * time, np.full(21, 7.0))
    assert judge(cover[..., None] * np.array([0.9, 0.1, 0.1])).motion is None


def test_shapes_of_one_radius_have_about_one_area():
    for shape in shapes.SHAPES:
        area = shapes.outline(shape, np.full((1, 2), 32.0), np.full(1, 10.0)).sum()
        assert area / (100 * np.pi) == pytest.approx(1, abs=0.16)


def test_a_drawn_shape_stays_inside():
    for seed, prompt in enumerate(prompts(held_out=False)[::5]):
        frames = drawn(prompt, seed).astype(int)
        border = frames[:, [0, -1]], frames[:, :, [0, -1]]
        assert all((side == frames[0, 0, 0]).all() for side in border)


def test_held_out_prompts_share_no_triple_but_every_word():
    held, trained = (prompts(held_out=h) for h in (True, False))
    assert (len(held), len(trained), len({*held, *trained})) == (44, 220, 264)
    for pick in (lambda p: (p.colour, p.shape), lambda p: (p.colour, p.motion),
                 lambda p: (p.shape, p.motion)):  # fmt: skip
        assert {pick(p) for p in held} <= {pick(p) for p in trained}
    assert not Prompt("red", "circle", "moves right", "white").held_out
    assert Prompt("red", "circle", "moves left", "white").held_out


def test_a_prompt_is_read_back():
    for prompt in itertools.islice(examples(0, held_out=True), 50):
        assert parse(prompt.text) == prompt
    assert parse("an orange cross stays still").text == "an orange cross stays still"


@pytest.mark.parametrize(
    "text", ["", "a", "a red circle", "a pink circle grows", "an red circle grows",
             "a red circle grows on a pink background", "a red  circle grows", "on a background"]
)  # fmt: skip
def test_other_sentences_are_refused(text):
    with pytest.raises(ValueError, match=rf"got '{text}'; expected a prompt such as 'a red "):
        parse(text)


def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"got frames \[64, 64, 3\]; expected \[T >= 5, H, H, 3\]"):
        judge(drawn(RED)[0])
    with pytest.raises(ValueError, match=r"got frames \[21, 64, 60, 3\]"):
        judge(drawn(RED)[:, :, :60])


def test_the_judge_needs_numpy_alone():
    code = "import edgevlm.evaluation.videos.shapes, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
