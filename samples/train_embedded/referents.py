"""What the phrases of a question refer to, for the training loss that asks it of their last token.

A question such as "Is the red star left of the ring?" needs two things found before they can be
compared. Answers alone teach finding and comparing at once, which is slow; here each phrase says
what it stands for: what the item is, where it is, how many there are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from model import COLOUR, FRAMES, REFERRED, SIDE, SIZES, WHAT

from edgevlm.evaluation.datasets.shared import questions
from edgevlm.evaluation.datasets.shared.clips import COMES, Clip
from edgevlm.evaluation.datasets.shared.drawing import CELL, COLOURS, SHAPES, Item
from edgevlm.evaluation.datasets.shared.scenes import Scene

IGNORE = -100
Phrases = dict[str, list[int]]  # what a phrase refers to: one class for each of `REFERRED`


def in_scene(scene: Scene) -> Phrases:
    """Phrases of questions about a still scene."""
    items = scene.items
    found = {word: _many(n) for word, n in _counted(items)}
    found |= {f"the {name}": _one([item]) for item, name, _ in questions.names(items)}
    texts = [i for i in items if i.kind == "text"]
    for item in texts:
        if len(texts) == 1:
            found["the text"] = _one([item])
        if sum(i.colour == item.colour for i in texts) == 1:
            found[f"the {item.colour} text"] = _one([item])
        found[f"the text {item.name}"] = _one([item])
    if scene.odd is not None:
        odd, usual = _one([items[scene.odd]]), _one([items[1]])
        usual[3:] = [IGNORE] * len(usual[3:])
        found |= {"the odd": usual, "the one": usual, "Which object": usual,
                  "odd one out": odd, "that differs": odd, "the rest": odd}  # fmt: skip
    return found


def in_clip(clip: Clip) -> Phrases:
    """Phrases of questions about a clip."""
    seen: dict[tuple[str, str, str], list[tuple[int, Item]]] = {}
    for number, items in enumerate(clip.frames):
        for item in items:
            seen.setdefault((item.kind, item.name, item.colour), []).append((number, item))
    found: Phrases = {}
    for which, shots in zip((*COMES, ""), seen.values(), strict=False):
        item = shots[0][1]
        path = [shots[at][1] for at in (0, (len(shots) - 1) // 2, -1)]
        name = item.title if item.kind == "shape" else "picture"
        facts = _one([item] if clip.kind == "order" else path)
        facts[-1] = shots[0][0]
        found[f"the {name}"] = facts
        if clip.kind == "order" and which:
            found[f"came {which}"] = facts
    if clip.kind == "order":
        found["came last"] = facts
    return found


def marks(phrases: Phrases, prompt: str) -> dict[int, list[int]]:
    """Where phrases end in a prompt, in characters, and what they refer to; the longest counts."""
    found = {}
    for phrase in sorted(phrases, key=len):
        for match in re.finditer(rf"\b{re.escape(phrase)}\b", prompt):
            found[match.end()] = phrases[phrase]
    return found


def _one(path: list[Item]) -> list[int]:
    """An item, at one place or at three."""
    item = path[0]
    what = {"text": "", "photo": "", "emoji": "emoji"}.get(item.kind, item.name)
    named = [WHAT.index(what), COLOUR.index(item.colour), SIZES.index(item.size)]
    places = [min(SIDE - 1, int(v / CELL)) for i in path for v in (i.y, i.x)]
    places += [IGNORE] * (2 * FRAMES - len(places))
    return [*(n or IGNORE for n in named), *places, IGNORE, IGNORE]


def _many(count: int) -> list[int]:
    return [IGNORE] * (len(REFERRED) - 2) + [count, IGNORE]


def _counted(items: tuple[Item, ...]) -> Iterator[tuple[str, int]]:
    """Plural phrases and how many there are."""
    things = [i for i in items if i.kind != "text"]
    yield "objects", len(things)
    if any(i.kind != "shape" for i in things):
        return
    colours, shapes = Counter(i.colour for i in things), Counter(i.name for i in things)
    both = Counter((i.colour, i.name) for i in things)
    for colour in COLOURS:
        yield f"{colour} objects", colours[colour]
        for shape in SHAPES:
            yield f"{colour} {questions.plural(shape)}", both[colour, shape]
    for shape in SHAPES:
        yield questions.plural(shape), shapes[shape]
