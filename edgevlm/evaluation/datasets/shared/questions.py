"""Every question about a still scene that has one exact answer: it follows from the items alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random

from edgevlm.evaluation.datasets.shared.drawing import COLOURS, SHAPES, SIZE, Item
from edgevlm.evaluation.datasets.shared.scenes import Scene
from edgevlm.evaluation.examples import Question

IMAGE_TASKS = ("colour", "shape", "size", "count", "place", "compare", "odd", "read", "sign")
PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)


def questions(scene: Scene, rng: Random, digits: Sequence[str] = ()) -> list[Question]:
    """All questions about a scene, in random order and wording.

    Args:
        scene: The items of the image.
        rng: Chooses wordings, and which of many pairs are asked about.
        digits: The digit that each photograph signs.
    """
    if scene.kind == "sign":
        answer = digits[int(scene.items[0].name)]
        asked = _say(rng, "Which digit does the hand show?", "What number is the hand signing?")
        return [Question("sign", asked, answer)]
    found = [
        q for ask in (_attributes, _counts, _places, _compares, _reads) for q in ask(scene, rng)
    ]
    if scene.odd is not None:
        found += _odd_ones(scene, rng)
    rng.shuffle(found)
    return found


def description(scene: Scene, rng: Random) -> list[Question]:
    """What is in a scene of one to four items, in reading order; for training and for people."""
    if not 1 <= len(scene.items) <= 4 or any(i.kind not in ("shape", "text") for i in scene.items):
        return []
    rows = sorted(scene.items, key=lambda i: (int(i.y * 3 / SIZE), i.x))
    said = [f"the text {i.name}" if i.kind == "text" else f"a {i.size} {i.title}" for i in rows]
    listed = " and ".join(filter(None, (", ".join(said[:-1]), said[-1])))
    asked = _say(rng, "What is in this picture?", "Describe the picture.", "What do you see?")
    return [Question("describe", asked, listed)]


def names(items: Sequence[Item]) -> Iterator[tuple[Item, str, str]]:
    """(item, name, kind of name) for every shape that a name singles out.

    Kinds: title (`red star`), colour (`red object`), shape (`star`).
    """
    titles = Counter(i.title for i in items)
    colours, shapes = Counter(i.colour for i in items), Counter(i.name for i in items)
    for item in items:
        if item.kind != "shape":
            continue
        if titles[item.title] == 1:
            yield item, item.title, "title"
        if colours[item.colour] == 1:
            yield item, f"{item.colour} object", "colour"
        if shapes[item.name] == 1:
            yield item, item.name, "shape"


def _shapes(scene: Scene) -> list[Item]:
    return [i for i in scene.items if i.kind == "shape"]


def _attributes(scene: Scene, rng: Random) -> Iterator[Question]:
    for item, name, kind in names(scene.items):
        if kind == "shape":
            asked = _say(rng, f"What colour is the {name}?", f"Which colour does the {name} have?")
            yield Question("colour", asked, item.colour)
        if kind == "colour":
            asked = _say(rng, f"What shape is the {name}?", f"Which shape does the {name} have?")
            yield Question("shape", asked, item.name)
        asked = _say(rng, f"How big is the {name}?", f"What size is the {name}?")
        yield Question("size", asked, item.size)
    kinds = {(i.colour, i.name) for i in _shapes(scene)}
    if len(kinds) == 1 and len(_shapes(scene)) > 1:  # all equal
        (colour, shape), end = kinds.pop(), rng.choice(("objects", "shapes"))
        yield Question("colour", f"What colour are the {end}?", colour)
        yield Question("shape", f"What shape are the {end}?", shape)


def _counts(scene: Scene, rng: Random) -> Iterator[Question]:
    items = [i for i in scene.items if i.kind != "text"]
    shapes = _shapes(scene)
    if len(items) > 0:
        yield _count(rng, "objects", len(items))
    if len(shapes) < len(items):
        return
    colours, kinds = Counter(i.colour for i in shapes), Counter(i.name for i in shapes)
    if rng.random() < 0.3:  # at times about what is not there
        colours[rng.choice(list(COLOURS))] += 0
        kinds[rng.choice(SHAPES)] += 0
    for colour, count in colours.items():
        yield _count(rng, f"{colour} objects", count)
    for name, count in kinds.items():
        yield _count(rng, plural(name), count)
    titles = Counter((i.colour, i.name) for i in shapes)
    for (colour, name), count in titles.items():
        if count > 1 or rng.random() < 0.2:
            yield _count(rng, f"{colour} {plural(name)}", count)


def _count(rng: Random, what: str, count: int) -> Question:
    asked = _say(rng, f"How many {what} are there?", f"How many {what} do you see?")
    return Question("count", asked, str(count))


def _places(scene: Scene, rng: Random) -> Iterator[Question]:
    named = _one_name_each(scene, rng)
    for first, name in named:
        for second, other in named:
            if first is second:
                continue
            dx, dy = first.x - second.x, first.y - second.y
            across, down = ("left" if dx < 0 else "right"), ("above" if dy < 0 else "below")
            form = rng.randrange(3)
            if form == 0 and abs(dx) > 24:
                asked = f"Is the {name} left or right of the {other}?"
                yield Question("place", asked, across)
            elif form == 1 and abs(dy) > 24:
                yield Question("place", f"Is the {name} above or below the {other}?", down)
            elif max(abs(dx), abs(dy)) > 30 and max(abs(dx), abs(dy)) > 1.8 * min(abs(dx), abs(dy)):
                asked = f"Where is the {name}, seen from the {other}?"
                yield Question("place", asked, across if abs(dx) > abs(dy) else down)


def _compares(scene: Scene, rng: Random) -> Iterator[Question]:
    named = _one_name_each(scene, rng)
    for first, name in named:
        for second, other in named:
            if first is second:
                continue
            if first.size != second.size and rng.random() < 0.7:
                larger = name if first.width > second.width else other
                asked = _say(rng, f"Which is larger, the {name} or the {other}?",
                             f"Which is bigger, the {name} or the {other}?")  # fmt: skip
                yield Question("compare", asked, larger)
            else:
                asked = f"Are the {name} and the {other} the same size?"
                yield Question("compare", asked, "yes" if first.size == second.size else "no")
    shapes = _shapes(scene)
    for counts, form in (
        (Counter(i.colour for i in shapes), "{} objects"),
        (Counter(plural(i.name) for i in shapes), "{}"),
    ):
        for first_key in counts:
            for second_key in counts:
                if first_key != second_key and counts[first_key] != counts[second_key]:
                    more = "yes" if counts[first_key] > counts[second_key] else "no"
                    a, b = form.format(first_key), form.format(second_key)
                    yield Question("compare", f"Are there more {a} than {b}?", more)


def _reads(scene: Scene, rng: Random) -> Iterator[Question]:
    texts = [i for i in scene.items if i.kind == "text"]
    if len(texts) == 1:
        asked = _say(
            rng, "What does the text say?", "Which text is written here?", "Read the text."
        )
        yield Question("read", asked, texts[0].name)
    for item in texts:
        if sum(i.colour == item.colour for i in texts) == 1:
            asked = _say(rng, f"What does the {item.colour} text say?",
                         f"Read the {item.colour} text.")  # fmt: skip
            yield Question("read", asked, item.name)
            asked = f"What colour is the text {item.name}?"
            yield Question("colour", asked, item.colour)


def _odd_ones(scene: Scene, rng: Random) -> Iterator[Question]:
    assert scene.odd is not None
    item = scene.items[scene.odd]
    rest = scene.items[1]
    third = SIZE / 3
    place = PLACES[min(2, int(item.y / third))][min(2, int(item.x / third))]
    if all(abs(v % third) > 6 and abs(v % third) < third - 6 for v in (item.x, item.y)):
        asked = _say(rng, "Where is the odd one out?", "Where is the one that differs?")
        yield Question("odd", asked, place)
    if item.kind == "shape":
        differs = "colour" if item.name == rest.name else "shape"
        asked = _say(rng, "Which object is the odd one out?", "Which object differs from the rest?")
        yield Question("odd", asked, item.title)
        asked = f"What {differs} is the odd one out?"
        yield Question("odd", asked, item.colour if differs == "colour" else item.name)


def _one_name_each(scene: Scene, rng: Random) -> list[tuple[Item, str]]:
    found: dict[Item, list[str]] = {}
    for item, name, _ in names(scene.items):
        found.setdefault(item, []).append(name)
    return [(item, rng.choice(options)) for item, options in found.items()]


def plural(name: str) -> str:
    """`crosses` for `cross`."""
    return name + ("es" if name.endswith("s") else "s")


def _say(rng: Random, *wordings: str) -> str:
    return rng.choice(wordings)
