"""Clips: answers follow from the frames, by a second way of finding them."""

import re
from random import Random

import pytest

from edgevlm.evaluation.datasets.shared import clips
from edgevlm.evaluation.datasets.shared.drawing import Item


def drawn(kind, count=60, frames=None):
    for seed in range(count):
        rng = Random(f"{kind} {seed}")
        yield clips.draw_clip(rng, "test", kind, frames or 4 + seed % 5, emoji=20)


def track(clip, name):
    """Places of the item that is called `name`, one per frame."""
    return [(i.x, i.y) for f in clip.frames for i in f if i.title == name or name == "picture"]


def way(start, end):
    dx, dy = end[0] - start[0], end[1] - start[1]
    if abs(dx) < 1e-9 and abs(dy) < 1e-9:
        return None
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def test_which_way_an_item_moves_and_whether_it_turns():
    seen = set()
    for clip in [*drawn("move"), *drawn("turn")]:
        for question in clip.questions:
            seen.add(question.answer)
            if found := re.fullmatch(r"Which way does the (.+) move\?", question.prompt):
                path = track(clip, found[1])
                assert question.answer == way(path[0], path[-1])
            elif found := re.fullmatch(r"Does the (.+) move\?", question.prompt):
                path = track(clip, found[1])
                assert question.answer == ("yes" if way(path[0], path[-1]) else "no")
            elif found := re.fullmatch(r"Did the (.+) turn\?", question.prompt):
                path = track(clip, found[1])
                turned = way(*path[:2]) != way(*path[-2:])
                assert question.answer == ("yes" if turned else "no")
            else:
                name = re.fullmatch(r"Which way did the (.+) go after the turn\?", question.prompt)
                assert question.answer == way(*track(clip, name[1])[-2:])
    assert seen == {"left", "right", "up", "down", "yes", "no"}


def test_what_came_when_and_how_many():
    tasks, answers = set(), set()
    for clip in drawn("order", 90):
        order = list(dict.fromkeys(i.title for f in clip.frames for i in f))
        for question in clip.questions:
            tasks.add(question.task)
            if question.task == "appeared":
                answers.add(int(question.answer))
                assert question.answer == str(len(order))
            elif found := re.fullmatch(r"Which object came (\w+)\?", question.prompt):
                number = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1}[found[1]]
                assert question.answer == order[number]
            else:
                a, b = re.fullmatch(r"Which came first, the (.+) or the (.+)\?", question.prompt).groups()  # fmt: skip # noqa: E501
                assert question.answer == min(a, b, key=order.index)
    assert tasks == {"appeared", "order"}
    assert answers == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("kind", clips.KINDS)
def test_frames_are_as_many_as_asked_and_items_inside_and_apart(kind):
    for clip in drawn(kind, 30, frames=5):
        assert len(clip.frames) == 5
        for items in clip.frames:
            assert items
            assert all(i.inside for i in items)
            assert not any(a.near(b, 0) for n, a in enumerate(items) for b in items[:n])


@pytest.mark.parametrize("kind", clips.KINDS)
def test_a_clip_belongs_to_the_split_that_was_asked_for(kind):
    for split in ("train", "validation", "test"):
        assert clips.draw_clip(Random(1), split, kind, 6).split == split


def test_a_path_that_leaves_the_picture_is_no_path():
    item = Item("shape", "star", "red", "large", 0, 0, 50, 50)
    assert clips._path(Random(0), item, ["left", "left"], 400) is None
