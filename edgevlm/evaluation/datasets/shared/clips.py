"""Short clips and every question about them that has one exact answer.

A clip is F frames at equal times from 0 to 1 of something that happens. Kinds: `move` (one item
moves straight, another stays or moves too), `turn` (an item goes straight or turns by 90 degrees
half way) and `order` (items come one after another, each stays or goes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from edgevlm.evaluation.datasets.shared.drawing import COLOURS, SHAPES, SIZE, WIDTHS, Item
from edgevlm.evaluation.datasets.shared.scenes import split_of
from edgevlm.evaluation.examples import Question

KINDS = ("move", "turn", "order")
CLIP_TASKS = ("direction", "order", "appeared", "turn")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COMES = ("first", "second", "third", "fourth")
MOST = 5  # items that come one after another


@dataclass(frozen=True)
class Clip:
    """Frames as items from back to front, with the questions about them."""

    kind: str
    frames: tuple[tuple[Item, ...], ...]
    questions: tuple[Question, ...]

    @property
    def split(self) -> str:
        """As `Scene.split`, by what is in the first and the last frame."""
        return split_of(self.frames[0] + self.frames[-1])


def draw_clip(rng: Random, split: str, kind: str, frames: int, emoji: int = 0) -> Clip:
    """A random clip of a split.

    Args:
        rng: Source of all choices.
        split: train, validation or test.
        kind: One of `KINDS`.
        frames: Frames of the clip, at least 4.
        emoji: How many emoji there are; 0 leaves them out.
    """
    make = {"move": _move, "turn": _turn, "order": _order}[kind]
    while True:
        clip = make(rng, frames, emoji)
        if clip is not None and clip.split == split:
            return clip


def _move(rng: Random, frames: int, emoji: int) -> Clip | None:
    count = rng.choice((1, 1, 2))
    actors = _actors(rng, count, emoji if count == 1 else 0)  # two emoji have no names
    ways = [rng.choice(list(WAYS)) for _ in actors]
    if len(actors) == 2 and rng.random() < 0.4:
        ways[1] = ""  # it stays
    paths = [_path(rng, item, [way] * 2, rng.uniform(60, 110)) for item, way in
             zip(actors, ways, strict=True)]  # fmt: skip
    shots = _shots(frames, actors, paths)
    if shots is None:
        return None
    asked = []
    for item, way in zip(actors, ways, strict=True):
        name = _name(item)
        if way:
            asked.append(Question("direction", f"Which way does the {name} move?", way))
        if len(actors) == 2:
            answer = "yes" if way else "no"
            asked.append(Question("direction", f"Does the {name} move?", answer))
    return Clip("move", shots, tuple(asked))


def _turn(rng: Random, frames: int, emoji: int) -> Clip | None:
    count = rng.choice((1, 1, 2))
    actors = _actors(rng, count, emoji if count == 1 else 0)  # two emoji have no names
    turns = [rng.random() < 0.5 for _ in actors]
    paths, asked = [], []
    for item, turned in zip(actors, turns, strict=True):
        first = rng.choice(list(WAYS))
        side = [w for w in WAYS if WAYS[w][0] * WAYS[first][0] + WAYS[w][1] * WAYS[first][1] == 0]
        second = rng.choice(side) if turned else first
        paths.append(_path(rng, item, [first, second], rng.uniform(90, 125)))
        name = _name(item)
        asked.append(Question("turn", f"Did the {name} turn?", "yes" if turned else "no"))
        if turned:
            question = f"Which way did the {name} go after the turn?"
            asked.append(Question("turn", question, second))
        else:
            asked.append(Question("direction", f"Which way does the {name} move?", first))
    shots = _shots(frames, actors, paths)
    return Clip("turn", shots, tuple(asked)) if shots else None


def _order(rng: Random, frames: int, emoji: int) -> Clip | None:
    count = rng.randint(1, min(MOST, frames))
    actors = _actors(rng, count, emoji)
    stays = rng.random() < 0.6
    for _attempt in range(40):
        placed = [a.at(rng.uniform(30, SIZE - 30), rng.uniform(30, SIZE - 30)) for a in actors]
        pairs = ((a, b) for i, a in enumerate(placed) for b in placed[:i])
        if not any(a.near(b, 4) for a, b in pairs):
            break
    else:
        return None
    # Each comes in a frame of its own; the first is there at the start.
    starts = [0, *sorted(rng.sample(range(1, frames), count - 1))]
    ends = [frames] * count if stays else [*starts[1:], frames]
    shots = tuple(
        tuple(p for p, start, end in zip(placed, starts, ends, strict=True) if start <= f < end)
        for f in range(frames)
    )
    word = "things" if any(a.kind == "emoji" for a in actors) else "objects"
    asked = [Question("appeared", f"How many {word} appeared?", str(count))]
    if word == "objects" and count > 1:
        for which, item in zip(COMES, actors, strict=False):
            asked.append(Question("order", f"Which object came {which}?", item.title))
        asked.append(Question("order", "Which object came last?", actors[-1].title))
        first, second = sorted(rng.sample(range(count), 2))
        names = [actors[first].title, actors[second].title]
        rng.shuffle(names)
        question = f"Which came first, the {names[0]} or the {names[1]}?"
        asked.append(Question("order", question, actors[first].title))
    return Clip("order", shots, tuple(asked))


def _actors(rng: Random, count: int, emoji: int) -> list[Item]:
    """Different shapes, or emoji."""
    size = rng.choice(("medium", "large")) if count < 4 else "medium"
    width = rng.randint(*WIDTHS[size])
    if emoji and rng.random() < 0.25:
        names = [str(i) for i in rng.sample(range(emoji), count)]
        return [Item("emoji", name, "", size, 0, 0, width, width) for name in names]
    pairs = rng.sample([(c, s) for c in COLOURS for s in SHAPES], count)
    return [Item("shape", shape, colour, size, 0, 0, width, width) for colour, shape in pairs]


def _name(item: Item) -> str:
    return item.title if item.kind == "shape" else "picture"


def _path(
    rng: Random, item: Item, ways: Sequence[str], length: float
) -> list[tuple[float, float]] | None:
    """Start, middle and end of a path in two legs; None if it leaves the image."""
    steps = [WAYS[w] if w else (0, 0) for w in ways]
    start = (rng.uniform(0, SIZE), rng.uniform(0, SIZE))
    points = [start]
    for dx, dy in steps:
        x, y = points[-1]
        points.append((x + dx * length / 2, y + dy * length / 2))
    return points if all(item.at(*p).inside for p in points) else None


def _shots(
    frames: int, actors: Sequence[Item], paths: Sequence[list[tuple[float, float]] | None]
) -> tuple[tuple[Item, ...], ...] | None:
    """The items in each frame, or None if a path is missing or two items meet."""
    shots = []
    for frame in range(frames):
        t = 2 * frame / (frames - 1)
        items = []
        for item, path in zip(actors, paths, strict=True):
            if path is None:
                return None
            (x0, y0), (x1, y1) = path[0:2] if t <= 1 else path[1:3]
            s = t if t <= 1 else t - 1
            items.append(item.at(x0 + s * (x1 - x0), y0 + s * (y1 - y0)))
        if len(items) == 2 and items[0].near(items[1], 3):
            return None
        shots.append(tuple(items))
    return tuple(shots)
