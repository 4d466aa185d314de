"""Ask a bundle or a checkpoint the questions of a dataset, and score the answers.

    examples -> ask -> marks (scene, task, right?) -> scores by task and by group

`evaluation.scores` says what is right, and what the intervals and groups are. Questions of a
conversation count as task `multi_turn`, apart from the same question asked alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from PIL import Image

from edgevlm.errors import InputError, RecipeError
from edgevlm.evaluation.examples import Example
from edgevlm.evaluation.scores import (
    MULTI_TURN,
    Mark,
    Score,
    group_scores,
    right,
    score,
    task_scores,
)
from edgevlm.registry import DATASETS

MAX_NEW_TOKENS = 16
PAUSE_S = 2.0  # between two lines of progress


@dataclass(frozen=True)
class Times:
    """Number, median and 90th percentile of measured times."""

    n: int
    median: float
    p90: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        model_or_bundle: As the user named it.
        dataset: As the user named it.
        engine: Name of the engine; `pytorch` for a checkpoint.
        frames: Frames that the model takes; 1 is pictures.
        visual_tokens: Per picture or clip.
        accuracy: Share of right answers of all questions.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        n: Questions.
        scenes: Scenes; the interval resamples these.
        tasks: Scores by task.
        groups: Scores of `detail`, `image`, `clip` and `multi_turn`, where there are such.
        asked: Questions about an `image`, a `clip`, and a `still as clip`.
        left_out: Scenes that were not asked about, by reason.
        ttft_ms: Time to first token, the encoder included; of the first question of each scene.
        bundle_bytes: Bytes of the bundle's files.
        seconds: Duration of the evaluation.
        not_measured: Why a value is null.
    """

    model_or_bundle: str
    dataset: str
    engine: str
    frames: int
    visual_tokens: int
    accuracy: float
    low: float
    high: float
    n: int
    scenes: int
    tasks: dict[str, Score]
    groups: dict[str, Score]
    asked: dict[str, int]
    left_out: dict[str, int]
    ttft_ms: Times | None
    bundle_bytes: int | None
    seconds: float
    not_measured: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """An answer; `ttft_ms` only where the picture was encoded for it."""

    text: str
    ttft_ms: float | None = None


class Answerer(Protocol):
    """Who is asked; `edgevlm.evaluation.answerers` has them."""

    engine: str
    frames: int
    visual_tokens: int
    bundle_bytes: int | None

    def show(self, pictures: Sequence[Image.Image]) -> None:
        """Take the picture or the frames that the next questions are about."""

    def ask(self, prompt: str, further: bool) -> Reply:
        """Answer a question, in a new conversation or as a `further` turn of the last."""


@dataclass(frozen=True)
class Dataset:
    """A dataset as `--dataset` names it."""

    name: str
    module: ModuleType
    path: Path | None

    def examples(self, frames: int, limit: int | None) -> Iterator[Example]:
        """The examples for a model that takes this many frames, of `limit` scenes at most."""
        found: Iterator[Example] = iter(self.module.examples(self.path, frames, limit))
        return found


@dataclass
class _Tally:
    marks: list[Mark] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    ttft_ms: list[float] = field(default_factory=list)


def find_dataset(text: str) -> Dataset:
    """The dataset `NAME`, `NAME:PATH`, or a file of questions.

    Raises:
        RecipeError: If there is no such dataset, or its path is missing or not wanted.
        InputError: If a file of questions is not there.
    """
    name, colon, path = text.partition(":")
    if name.replace("-", "_") not in DATASETS.names():
        if Path(text).is_file():
            return Dataset(text, DATASETS.load("jsonl"), Path(text))
        if "/" in text or text.endswith((".jsonl", ".json")):
            raise InputError(f"no file of questions at '{text}'")
    module = DATASETS.load(name)
    if module.PATH is None and colon:
        raise RecipeError(f"dataset '{name}' takes no path, got '{path}'")
    if module.PATH is not None and not path:
        raise RecipeError(f"dataset '{name}' needs a path: {name}:PATH, {module.PATH}")
    return Dataset(text, module, Path(path) if path else None)


def evaluate(
    answerer: Answerer,
    examples: Iterable[Example],
    model_or_bundle: str,
    dataset: str,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Ask every question and score the answers.

    Args:
        answerer: Who is asked.
        examples: What is asked.
        model_or_bundle: Its name, for the report.
        dataset: Its name, for the report.
        seed: Seed of the intervals.
        progress: Called with a line every two seconds.

    Raises:
        InputError: If a question does not fit the context, or none can be asked.
    """
    started = said = time.perf_counter()
    tally = _Tally()
    for example in examples:
        _ask(answerer, example, tally)
        if time.perf_counter() - said > PAUSE_S and tally.marks:
            said, share = time.perf_counter(), np.mean([mark.right for mark in tally.marks])
            progress(f"{len(tally.marks)} questions asked, {share:.1%} right so far")
    if not tally.marks:
        reasons = "; ".join(f"{n} scenes left out: {why}" for why, n in tally.left_out.items())
        raise InputError(f"dataset '{dataset}' asks nothing" + (f": {reasons}" if reasons else ""))
    whole = score(tally.marks, seed)
    times = tally.ttft_ms
    reason = {"ttft_ms": f"{answerer.engine} is the reference, not an engine that ships"}
    size = {"bundle_bytes": "no bundle was asked"}
    return Evaluation(
        model_or_bundle=model_or_bundle,
        dataset=dataset,
        engine=answerer.engine,
        frames=answerer.frames,
        visual_tokens=answerer.visual_tokens,
        accuracy=whole.accuracy,
        low=whole.low,
        high=whole.high,
        n=whole.n,
        scenes=len({mark.scene for mark in tally.marks}),
        tasks=task_scores(tally.marks, seed),
        groups=group_scores(tally.marks, seed),
        asked=dict(tally.asked),
        left_out=dict(tally.left_out),
        ttft_ms=_times(times) if times else None,
        bundle_bytes=answerer.bundle_bytes,
        seconds=round(time.perf_counter() - started, 3),
        not_measured=({} if times else reason) | ({} if answerer.bundle_bytes else size),
    )


def _ask(answerer: Answerer, example: Example, tally: _Tally) -> None:
    shown, frames = len(example.frames), answerer.frames
    if shown not in (1, frames):
        what = "clips" if frames == 1 else f"clips of {shown} frames"
        takes = "pictures" if frames == 1 else f"{frames} frames"
        tally.left_out[f"{what}, the model takes {takes}"] += 1
        return
    kind = "image" if shown == 1 else "clip"
    try:
        answerer.show(example.frames * (frames if shown == 1 else 1))
        for turn, question in enumerate(example.questions):
            reply = answerer.ask(question.prompt, further=example.chat and turn > 0)
            task = MULTI_TURN if example.chat else question.task
            correct = right(reply.text, question.answer)
            tally.marks.append(Mark(example.scene, task, kind, correct))
            tally.asked["still as clip" if shown < frames else kind] += 1
            if reply.ttft_ms is not None:
                tally.ttft_ms.append(reply.ttft_ms)
    except InputError as cause:
        raise InputError(f"scene '{example.scene}': {cause}") from cause


def _times(values: Sequence[float]) -> Times:
    median, p90 = np.percentile(values, (50, 90)).round(3)
    return Times(len(values), float(median), float(p90))
