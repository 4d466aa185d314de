"""Still scenes: lists of items that fit into an image.

Kinds: `objects` (shapes, at times with a text), `odd` (equal items but one), `text` (one to three
strings), `sign` (a photograph of a hand that signs a digit).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from edgevlm.evaluation.datasets.shared.drawing import (
    CELL,
    CHARACTERS,
    COLOURS,
    FONTS,
    SHAPES,
    SIZE,
    WIDTHS,
    Item,
    text_size,
)

KINDS = ("objects", "odd", "text", "sign")
SPLITS = ("train", "validation", "test")
MOST = 9  # objects of a scene


@dataclass(frozen=True)
class Scene:
    """Items from back to front."""

    kind: str
    items: tuple[Item, ...]
    odd: int | None = None  # index of the item that differs

    @property
    def split(self) -> str:
        """train, validation or test: decided by the items and the visual token of each.

        So no scene of one split is in another, whatever the seeds.
        """
        return split_of(self.items)


def split_of(items: Sequence[Item]) -> str:
    """Split of a list of items, by a hash of names, colours, sizes and token positions."""
    facts = sorted((i.kind, i.name, i.colour, i.size, i.x // CELL, i.y // CELL) for i in items)
    bucket = hashlib.sha256(repr(facts).encode()).digest()[0] % 20
    return {0: "test", 1: "validation"}.get(bucket, "train")


def draw_scene(rng: Random, split: str, kind: str, photos: int = 0, emoji: int = 0) -> Scene:
    """A random scene of a split.

    Args:
        rng: Source of all choices.
        split: train, validation or test.
        kind: One of `KINDS`.
        photos: How many photographs there are; a scene of kind `sign` shows one by its number.
        emoji: How many emoji there are; 0 leaves them out.
    """
    if kind == "sign":  # the photographs are split by person, not by scene
        return hand(rng, rng.randrange(photos))
    make: Callable[[Random, int], Scene] = {"objects": _objects, "odd": _odd, "text": _text}[kind]
    while True:
        scene = make(rng, emoji)
        if scene.items and scene.split == split:
            return scene


def crowd(rng: Random, emoji: int) -> Scene:
    """As many items as fit, for training: nothing is asked about it, so it is in no split."""
    items: list[Item] = []
    for _attempt in range(rng.randint(5, 45)):
        if rng.random() < 0.5:
            item = _letters(rng)
        else:
            size = rng.choice(("small", "small", "medium", "large"))
            item = _a_shape(rng, rng.choice(SHAPES), rng.choice(list(COLOURS)), size)
            if emoji and rng.random() < 0.06:
                item = as_emoji(item, rng.randrange(emoji))
        _add(rng, items, item, gap=rng.choice((-2, 1, 4)))
    return Scene("crowd", tuple(items))


def hands(rng: Random, photos: int, count: int) -> Scene:
    """One hand, or four in a square, for training."""
    if count == 1:
        return hand(rng, rng.randrange(photos))
    side, quarter = SIZE / 2 - 2, SIZE / 4
    centres = [(x, y) for x in (quarter, 3 * quarter) for y in (quarter, 3 * quarter)]
    chosen = rng.sample(range(photos), 4)
    items = [
        Item("photo", str(photo), "", "", x, y, side, side)
        for photo, (x, y) in zip(chosen, centres, strict=True)
    ]
    return Scene("hands", tuple(items))


def hand(rng: Random, photo: int) -> Scene:
    """A photograph that fills most of the image."""
    side = rng.uniform(0.8, 1.0) * SIZE
    slack = (SIZE - side) / 2
    x, y = (SIZE / 2 + rng.uniform(-slack, slack) for _ in range(2))
    return Scene("sign", (Item("photo", str(photo), "", "", x, y, side, side),))


def _objects(rng: Random, _: int) -> Scene:
    """One to nine shapes; few or many colours and shapes, so that all counts occur."""
    colours = rng.sample(list(COLOURS), rng.choice((1, 2, 2, 3, 4, 8)))
    shapes = rng.sample(SHAPES, rng.choice((1, 2, 2, 3, 4, 8)))
    sizes = rng.choice((["small"], ["small", "medium"], ["small", "medium", "large"], ["large"]))
    wanted, items = rng.randint(1, MOST), list[Item]()
    if rng.random() < 0.25:
        _add(rng, items, _letters(rng))
    start = len(items)
    for _attempt in range(60):
        if len(items) - start == wanted:
            break
        _add(rng, items, _a_shape(rng, rng.choice(shapes), rng.choice(colours), rng.choice(sizes)))
    return Scene("objects", tuple(items))


def _odd(rng: Random, emoji: int) -> Scene:
    """Three to eight equal items and one that differs in colour, in shape, or as an emoji."""
    size = rng.choice(("small", "medium"))
    if emoji and rng.random() < 0.4:
        chosen = rng.sample(range(emoji), 2)
        models = [as_emoji(_a_shape(rng, "", "", size), number) for number in chosen]
    else:
        shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
        if rng.random() < 0.5:
            other = (shape, rng.choice([c for c in COLOURS if c != colour]))
        else:
            other = (rng.choice([s for s in SHAPES if s != shape]), colour)
        models = [_a_shape(rng, shape, colour, size), _a_shape(rng, *other, size)]
    items: list[Item] = []
    _add(rng, items, models[1])
    for _attempt in range(rng.randint(6, 16)):
        if len(items) < MOST:
            _add(rng, items, models[0])
    return Scene("odd", tuple(items) if len(items) >= 4 else (), odd=0)


def as_emoji(item: Item, number: int) -> Item:
    """An item of the same place and size that shows an emoji."""
    return Item("emoji", str(number), "", item.size, item.x, item.y, item.width, item.width)


def _text(rng: Random, _: int) -> Scene:
    """One to three strings in different colours, with at most three shapes around them."""
    items: list[Item] = []
    colours = rng.sample(list(COLOURS), 3)
    for colour in colours[: rng.choice((1, 1, 2, 3))]:
        _add(rng, items, _letters(rng, colour))
    for _attempt in range(rng.choice((0, 0, 2, 3))):
        shape = _a_shape(rng, rng.choice(SHAPES), rng.choice(list(COLOURS)), "small")
        _add(rng, items, shape)
    return Scene("text", tuple(items) if items and items[0].kind == "text" else ())


def _a_shape(rng: Random, name: str, colour: str, size: str) -> Item:
    width = rng.randint(*WIDTHS[size])
    angle = 0 if name in ("diamond", "cross") else rng.uniform(-14, 14)
    return Item("shape", name, colour, size, 0, 0, width, width, angle)


def _letters(rng: Random, colour: str | None = None) -> Item:
    text = "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(1, 4)))
    font, points = rng.randrange(len(FONTS)), rng.randint(24, 42)
    width, height = text_size(text, font, points)
    colour = colour or rng.choice(list(COLOURS))
    return Item("text", text, colour, "", 0, 0, width, height, 0.0, font, points)


def _add(rng: Random, items: list[Item], item: Item, gap: float = 3) -> None:
    """Add an item at a random position; leave it out if a dozen positions overlap."""
    for _attempt in range(12):
        half = item.width / 2 + 2, item.height / 2 + 2
        placed = item.at(*(rng.uniform(h, SIZE - h) for h in half))
        if placed.inside and not any(placed.near(other, gap) for other in items):
            items.append(placed)
            return
