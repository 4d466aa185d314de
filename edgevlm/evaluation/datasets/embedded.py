"""The embedded dataset: the test split of drawn scenes and clips, hands of unseen people.

Scene number n is always the same image with the same questions, on every machine. Kinds take
turns, so the first scenes have all of them. A still scene is asked one question of each task that
it allows; every fifth is a chat instead, whose questions are turns of one conversation. No scene,
person or emoji here was in the training of the embedded model.

The letters are those of DejaVu fonts, the hands photographs of the Sign Language Digits Dataset,
the emoji those of Noto; NOTICE has their licences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

from edgevlm.evaluation.datasets.shared import clips, questions, scenes
from edgevlm.evaluation.datasets.shared.drawing import background, draw
from edgevlm.evaluation.datasets.shared.material import COLUMNS, Material, packaged_material
from edgevlm.evaluation.examples import Example, Question

SUMMARY = "drawn scenes and clips with exact answers, hands that sign digits"
PATH = None
SCENES, CLIPS = 400, 360  # drawn scenes and clips of the whole dataset, hands not counted
CHAT = 5  # every fifth drawn scene is a chat


def examples(path: Path | None, frames: int, limit: int | None = None) -> Iterator[Example]:
    """The scenes in their fixed order.

    Args:
        path: Not used.
        frames: Frames of a clip; with one frame there are no clips, with fewer than 4 neither, for
            their answers would be guesses.
        limit: Most scenes; all if None.
    """
    del path
    return islice(_in_turns(packaged_material(), frames), limit)


def _in_turns(material: Material, frames: int) -> Iterator[Example]:
    """Clips first in each round, then one still scene of each kind, until all are used up."""
    kinds = [kind for kind in scenes.KINDS if kind != "sign"]
    # The sheet has a row of people for each digit; taken by columns, all digits come early.
    hands = iter([d * COLUMNS + person for person in range(COLUMNS) for d in range(10)])
    for index in range(SCENES):
        if frames >= 4 and index < CLIPS:
            yield clip(index, material, frames)
        yield _still(kinds[index % len(kinds)], index, material)
        if index % 2 == 0 and (hand := next(hands, None)) is not None:
            yield _hand(hand, material)


def _still(kind: str, index: int, material: Material) -> Example:
    rng = Random(f"edgevlm scene {index}")
    chat = index % CHAT == CHAT - 1
    scene = scenes.draw_scene(rng, "test", kind, emoji=len(material.emoji))
    picture = draw(background(rng), scene.items, material.emoji)
    asked = one_of_each_task(questions.questions(scene, rng))
    return Example(f"{kind} {index}", (picture,), tuple(asked), chat and len(asked) > 1)


def _hand(index: int, material: Material) -> Example:
    rng = Random(f"edgevlm hand {index}")
    asked = questions.questions(scenes.hand(rng, index), rng, material.digits)
    return Example(f"hand {index}", (material.photos[index],), tuple(asked))


def clip(index: int, material: Material, frames: int) -> Example:
    """Clip number `index`; those from `CLIPS` on are in no dataset."""
    rng = Random(f"edgevlm clip {frames} {index}")
    kind = clips.KINDS[index % len(clips.KINDS)]
    clip = clips.draw_clip(rng, "test", kind, frames, len(material.emoji))
    ground = background(rng)
    shots = tuple(draw(ground, items, material.emoji) for items in clip.frames)
    asked = list(clip.questions)
    rng.shuffle(asked)
    return Example(f"{kind} {index}", shots, tuple(one_of_each_task(asked)))


def one_of_each_task(asked: Sequence[Question]) -> list[Question]:
    """The first question of each task, in their order."""
    first: dict[str, Question] = {}
    for question in asked:
        first.setdefault(question.task, question)
    return list(first.values())
