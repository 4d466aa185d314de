"""Which answers are right, and accuracies with their intervals. Numpy alone.

An answer is right if it equals the expected one when outer spaces, case and one final full stop are
ignored. The 95 % interval is the percentile bootstrap over scenes (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13): questions of a scene share an image, so scenes
are drawn with replacement, not questions. Where all scenes agree the interval has no width: with
few scenes that says little.

Groups: `image` and `clip` (asked alone, about one image or several frames), `multi_turn`, which
together are all questions; `detail` (reading and counting, asked alone) is part of the first two.
Detail and multi-turn questions are reported apart: they degrade first when tokens are removed.
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
    """Fraction of right answers with its 95 % interval, and the number of questions."""

    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class ScoredAnswer:
    """One question and whether its answer was right.

    Attributes:
        scene: Name of its scene.
        task: Its task; `multi_turn` in a conversation.
        kind: `image` or `clip`, the subject of the question.
        right: Whether the answer was right.
    """

    scene: str
    task: str
    kind: str
    right: bool


def right(answer: str, expected: str) -> bool:
    """Whether two answers are equal but for outer spaces, case and one final full stop."""
    return _plain(answer) == _plain(expected)


def score(answers: Sequence[ScoredAnswer], seed: int = 0) -> Score:
    """Accuracy of at least one answer, and its interval by bootstrap over the scenes.

    The draws follow the seed and the number of scenes alone, so a task's interval does not change
    with other tasks. O(RESAMPLES * scenes).
    """
    names = {name: index for index, name in enumerate(dict.fromkeys(a.scene for a in answers))}
    scenes = np.zeros((len(names), 2), np.int64)  # right answers, questions
    for answer in answers:
        scenes[names[answer.scene]] += (answer.right, 1)
    random = np.random.default_rng(seed)
    drawn = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        times = np.bincount(random.integers(len(scenes), size=len(scenes)), minlength=len(scenes))
        good, count = times @ scenes
        drawn[index] = good / count
    low, high = np.percentile(drawn, INTERVAL)
    good, count = scenes.sum(0)
    return Score(float(good / count), float(low), float(high), int(count))


def task_scores(answers: Sequence[ScoredAnswer], seed: int = 0) -> dict[str, Score]:
    """Scores by task, in the order of the names."""
    return _scores(answers, seed, lambda answer: (answer.task,))


def group_scores(answers: Sequence[ScoredAnswer], seed: int = 0) -> dict[str, Score]:
    """Scores by group; groups without questions are left out."""

    def groups(answer: ScoredAnswer) -> tuple[str, ...]:
        if answer.task == MULTI_TURN:
            return (MULTI_TURN,)
        return (answer.kind, "detail") if answer.task in DETAIL else (answer.kind,)

    return _scores(answers, seed, groups)


def _scores(
    answers: Sequence[ScoredAnswer], seed: int, names: Callable[[ScoredAnswer], tuple[str, ...]]
) -> dict[str, Score]:
    groups: dict[str, list[ScoredAnswer]] = defaultdict(list)
    for answer in answers:
        for name in names(answer):
            groups[name].append(answer)
    return {name: score(groups[name], seed) for name in sorted(groups)}


def _plain(answer: str) -> str:
    return answer.strip().lower().removesuffix(".").rstrip()
