"""Right or wrong, and the shares of right answers with their intervals. Numpy alone.

An answer is right if it equals the expected one after both lost outer spaces, capitals and one
final full stop. The 95 % interval is the percentile bootstrap over scenes (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13): questions of a scene share a picture, so scenes
are drawn with replacement, not questions. Where all scenes agree the interval has no width: with
few scenes that says little.

Groups: `image` and `clip` (asked alone, about one picture or several), `multi_turn`, which together
are all questions; `detail` (reading and counting, asked alone) is part of the first two. Detail and
multi-turn questions are reported apart because they degrade first when tokens are removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DETAIL = ("read", "count")
MULTI_TURN = "multi_turn"
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Score:
    """Share of right answers with its 95 % interval, and the number of questions."""

    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Mark:
    """One question after it was asked.

    Attributes:
        scene: Name of its scene.
        task: Its task; `multi_turn` in a conversation.
        kind: `image` or `clip`, what was asked about.
        right: Whether the answer was the expected one.
    """

    scene: str
    task: str
    kind: str
    right: bool


def right(answer: str, expected: str) -> bool:
    """Whether two answers are equal but for outer spaces, capitals and one final full stop."""
    return _plain(answer) == _plain(expected)


def score(marks: Sequence[Mark], seed: int = 0) -> Score:
    """Accuracy of `marks`, at least one, and its interval by bootstrap over their scenes.

    The draws follow the seed and the number of scenes alone, so a task's interval does not change
    with other tasks. O(RESAMPLES * scenes).
    """
    names = {name: index for index, name in enumerate(dict.fromkeys(m.scene for m in marks))}
    scenes = np.zeros((len(names), 2), np.int64)  # right answers, questions
    for mark in marks:
        scenes[names[mark.scene]] += (mark.right, 1)
    random = np.random.default_rng(seed)
    drawn = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        times = np.bincount(random.integers(len(scenes), size=len(scenes)), minlength=len(scenes))
        good, count = times @ scenes
        drawn[index] = good / count
    low, high = np.percentile(drawn, INTERVAL)
    good, count = scenes.sum(0)
    return Score(float(good / count), float(low), float(high), int(count))


def task_scores(marks: Sequence[Mark], seed: int = 0) -> dict[str, Score]:
    """Scores by task, in the order of the names."""
    return _scores(marks, seed, lambda mark: (mark.task,))


def group_scores(marks: Sequence[Mark], seed: int = 0) -> dict[str, Score]:
    """Scores by group; a group without questions is not there."""

    def groups(mark: Mark) -> tuple[str, ...]:
        if mark.task == MULTI_TURN:
            return (MULTI_TURN,)
        return (mark.kind, "detail") if mark.task in DETAIL else (mark.kind,)

    return _scores(marks, seed, groups)


def _scores(
    marks: Sequence[Mark], seed: int, names: Callable[[Mark], tuple[str, ...]]
) -> dict[str, Score]:
    parts: dict[str, list[Mark]] = defaultdict(list)
    for mark in marks:
        for name in names(mark):
            parts[name].append(mark)
    return {name: score(parts[name], seed) for name in sorted(parts)}


def _plain(answer: str) -> str:
    return answer.strip().lower().removesuffix(".").rstrip()
