"""Scenes: every answer follows from the items, by a second, independent way of finding it."""

import re
from random import Random

import numpy as np
import pytest

from edgevlm.evaluation.datasets.shared import questions, scenes
from edgevlm.evaluation.datasets.shared.drawing import (
    CELL,
    COLOURS,
    SHAPES,
    SIZE,
    WIDTHS,
    Item,
    background,
    cells,
    draw,
)

DRAWN = ("objects", "odd", "text")


def scene(kind, seed, split="test", emoji=0):
    return scenes.draw_scene(Random(f"{kind} {seed}"), split, kind, emoji=emoji)


def matching(items, words):
    """Items that a noun phrase such as `small red stars`, `red object` or `ring` means."""
    words = [re.sub(r"(?<=cross)es$|(?<!s)s$", "", word) for word in words]
    return [
        i
        for i in items
        if i.kind != "text"
        and all(w in (i.colour, i.name) or w in ("object", "thing", "shape") for w in words)
    ]


def one(items, phrase):
    found = matching(items, phrase.split())
    assert len(found) == 1, f"'{phrase}' names {len(found)} items"
    return found[0]


def oracle(items, prompt):
    """The answer to a question, read from its words; None for a question it does not know."""
    if found := re.fullmatch(r"How many (.+?) (?:are there|do you see)\?", prompt):
        return str(len(matching(items, found[1].split())))
    asked = r"(?:What|Which) (colour|shape) (?:is|does) the (.+?)(?: have)?\?"
    if found := re.fullmatch(asked, prompt):
        if "odd" in prompt or "text" in prompt:
            return None
        item = one(items, found[2])
        return item.colour if found[1] == "colour" else item.name
    if found := re.fullmatch(r"(?:How big|What size) is the (.+)\?", prompt):
        return one(items, found[1]).size
    if found := re.fullmatch(r"Is the (.+) (left or right of|above or below) the (.+)\?", prompt):
        a, b = one(items, found[1]), one(items, found[3])
        if found[2].startswith("left"):
            return "left" if a.x < b.x else "right"
        return "above" if a.y < b.y else "below"
    if found := re.fullmatch(r"Where is the (.+), seen from the (.+)\?", prompt):
        a, b = one(items, found[1]), one(items, found[2])
        angle = np.degrees(np.arctan2(b.y - a.y, a.x - b.x)) % 360
        return ("right", "above", "left", "below")[int((angle + 45) % 360 // 90)]
    if found := re.fullmatch(r"Which is (?:larger|bigger), the (.+) or the (.+)\?", prompt):
        a, b = one(items, found[1]), one(items, found[2])
        return found[1] if a.width > b.width else found[2]
    if found := re.fullmatch(r"Are the (.+) and the (.+) the same size\?", prompt):
        same = one(items, found[1]).size == one(items, found[2]).size
        return "yes" if same else "no"
    if found := re.fullmatch(r"Are there more (.+) than (.+)\?", prompt):
        a, b = (len(matching(items, found[i].split())) for i in (1, 2))
        return "yes" if a > b else "no"
    return None


@pytest.mark.parametrize("kind", DRAWN)
def test_an_independent_reading_of_the_items_gives_the_same_answers(kind):
    checked = set()
    for seed in range(80):
        drawn = scene(kind, seed)
        for question in questions.questions(drawn, Random(seed)):
            answer = oracle(drawn.items, question.prompt)
            if answer is not None:
                assert question.answer == answer, question
                checked.add(question.task)
    wanted = {"objects": {"colour", "shape", "size", "count", "place", "compare"}}
    assert checked >= wanted.get(kind, {"count"})


def test_texts_are_read_and_have_their_colour():
    for seed in range(60):
        drawn = scene("text", seed)
        texts = {i.colour: i.name for i in drawn.items if i.kind == "text"}
        for question in questions.questions(drawn, Random(seed)):
            if question.task == "read":
                named = [c for c in COLOURS if f" {c} " in question.prompt]
                assert question.answer == texts[named[0] if named else next(iter(texts))]
                assert named or len(texts) == 1
            if found := re.fullmatch(r"What colour is the text (\w+)\?", question.prompt):
                assert texts[question.answer] == found[1]


def test_the_odd_one_differs_from_all_others_and_they_from_none():
    for seed in range(60):
        items = scene("odd", seed, emoji=20).items
        looks = [(i.kind, i.colour, i.name) for i in items]
        assert looks.count(looks[0]) == 1
        assert len(set(looks[1:])) == 1
        assert len(items) >= 4


def test_where_the_odd_one_is():
    corner = Item("shape", "star", "red", "small", 20, 20, 24, 24)
    others = tuple(Item("shape", "star", "blue", "small", x, 90, 24, 24) for x in (20, 60, 100))
    asked = questions.questions(scenes.Scene("odd", (corner, *others), odd=0), Random(0))
    answers = {q.answer for q in asked if q.task == "odd"}
    assert answers == {"top left", "red star", "red"}


def test_counts_reach_nine_and_include_none():
    answers = {
        int(q.answer)
        for seed in range(200)
        for q in questions.questions(scene("objects", seed), Random(seed))
        if q.task == "count"
    }
    assert answers == set(range(10))


@pytest.mark.parametrize("kind", DRAWN)
def test_items_are_inside_apart_and_at_least_two_tokens_wide(kind):
    for seed in range(60):
        items = scene(kind, seed).items
        assert all(i.inside for i in items)
        assert all(i.kind == "text" or i.width >= 2 * CELL for i in items)
        assert not any(a.near(b, 0) for n, a in enumerate(items) for b in items[:n])


@pytest.mark.parametrize("kind", DRAWN)
def test_no_scene_is_in_two_splits(kind):
    facts = {}
    for split in scenes.SPLITS:
        for seed in range(40):
            drawn = scene(kind, seed, split)
            assert drawn.split == split
            moved = tuple(sorted((i.name, i.colour, i.x // CELL, i.y // CELL) for i in drawn.items))
            assert facts.setdefault(moved, split) == split


def test_the_split_does_not_depend_on_the_order_of_the_items():
    items = scene("objects", 3).items
    assert scenes.split_of(items) == scenes.split_of(items[::-1])


def test_same_seed_same_scene_same_questions_same_pixels():
    first, second = ((r := Random("x"), scene("text", 5), background(r)) for _ in range(2))
    assert first[1] == second[1]
    assert first[2].tobytes() == second[2].tobytes()
    a, b = (questions.questions(first[1], Random(1)) for _ in range(2))
    assert a == b


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", WIDTHS)
def test_a_shape_is_drawn_where_it_is_in_its_colour_and_size(shape, size):
    width = WIDTHS[size][0]
    item = Item("shape", shape, "purple", size, 80, 70, width, width)
    ground = background(Random(1))
    pixels = np.asarray(draw(ground, [item])).astype(int)
    mine = (np.abs(pixels - COLOURS["purple"]).sum(-1) < 30).nonzero()
    top, bottom, left, right = mine[0].min(), mine[0].max(), mine[1].min(), mine[1].max()
    assert abs((top + bottom) / 2 - 70) < 4
    assert abs((left + right) / 2 - 80) < 2
    # A diamond is narrower than its box, a square a little smaller, others fill it.
    assert 0.7 * width <= right - left + 1 <= width + 1
    untouched = np.asarray(draw(ground, [])).astype(int)
    outside = np.ones((SIZE, SIZE), bool)
    outside[
        70 - width // 2 - 1 : 70 + width // 2 + 2, 80 - width // 2 - 1 : 80 + width // 2 + 2
    ] = 0
    assert (pixels[outside] == untouched[outside]).all()


def test_cells_name_the_item_under_each_token():
    items = [
        Item("shape", "square", "red", "small", 18, 18, 24, 24),
        Item("shape", "square", "blue", "large", 120, 120, 48, 24),
    ]
    found = cells(items)
    assert found.shape == (SIZE // CELL, SIZE // CELL)
    assert (found[:3, :3] == [[-1, -1, -1], [-1, 0, 0], [-1, 0, 0]]).sum() >= 4
    rows, columns = (found == 1).nonzero()
    assert (len(set(rows)), len(set(columns))) == (2, 4)


def test_a_description_lists_the_items_in_reading_order():
    items = (
        Item("shape", "star", "red", "small", 100, 20, 24, 24),
        Item("shape", "ring", "blue", "large", 20, 22, 50, 50),
        Item("text", "A7", "green", "", 60, 140, 40, 20),
    )
    said = questions.description(scenes.Scene("objects", items), Random(0))[0].answer
    assert said == "a large blue ring, a small red star and the text A7"
