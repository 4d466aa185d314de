"""Ask a bundle or a checkpoint the questions of a dataset, and score the answers.

    examples -> ask -> scored answers (scene, task, right?) -> scores by task and by group

`evaluation.scores` defines right answers, intervals and groups. Questions of a conversation count
as task `multi_turn`, apart from the same question asked alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Protocol

from PIL import Image

from edgevlm.bundle.measures import Stat, stat
from edgevlm.errors import InputError, RecipeError
from edgevlm.evaluation.examples import Example, Question
from edgevlm.evaluation.scores import (
    MULTI_TURN,
    Score,
    ScoredAnswer,
    group_scores,
    right,
    score,
    task_scores,
)
from edgevlm.registry import DATASETS

MAX_NEW_TOKENS = 16
PAUSE_S = 2.0  # between two lines of progress


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        model_or_bundle: As the user named it.
        dataset: As the user named it.
        engine: Name of the engine; `pytorch` for a checkpoint.
        frames: Frames that the model takes; 1 is images.
        visual_tokens: Per image or clip.
        accuracy: Fraction of right answers of all questions.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        n: Questions.
        scenes: Scenes; the interval resamples these.
        tasks: Scores by task.
        groups: Scores of `detail`, `image`, `clip` and `multi_turn`, if they have questions.
        asked: Questions about an `image`, a `clip`, and a `still as clip`.
        left_out: Number of scenes without questions, by reason.
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
    ttft_ms: Stat | None
    bundle_bytes: int | None
    seconds: float
    not_measured: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """An answer; `ttft_ms` only if the image was encoded for it."""

    text: str
    ttft_ms: float | None = None


class Answerer(Protocol):
    """A model that answers questions; `edgevlm.evaluation.answerers` opens one."""

    engine: str
    frames: int
    visual_tokens: int
    bundle_bytes: int | None
    picker: str  # of frames of a video, by name; empty if they are even in time

    def set_frames(self, frames: Sequence[Image.Image]) -> None:
        """Take the image, or the frames of the clip, of the next questions."""

    def ask(self, prompt: str, follow_up: bool) -> Reply:
        """Answer a question, in a new conversation or as the next turn of the last one."""


@dataclass(frozen=True)
class Dataset:
    """A dataset as `--dataset` names it, and which of its questions are asked.

    Attributes:
        name: As the user named it.
        module: What reads it.
        path: Where from, if it is not embedded.
        only: Kinds and tasks of the questions that are asked, see `chosen`; none are all.
    """

    name: str
    module: ModuleType
    path: Path | None
    only: tuple[str, ...] = ()

    def examples(self, frames: int, limit: int | None) -> Iterator[Example]:
        """The examples for a model that takes this many frames, of `limit` scenes at most."""
        if self.only:
            every = self.module.examples(self.path, frames, None)
            return islice(chosen(every, self.only, self.name), limit)
        examples: Iterator[Example] = iter(self.module.examples(self.path, frames, limit))
        return examples


@dataclass
class _Tally:
    answers: list[ScoredAnswer] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    ttft_ms: list[float] = field(default_factory=list)


def find_dataset(text: str, only: tuple[str, ...] = ()) -> Dataset:
    """The dataset `NAME`, `NAME:PATH`, or a file that a dataset reads without its name.

    Args:
        text: As `--dataset` has it.
        only: Kinds and tasks of the questions that are asked; none are all.

    Raises:
        RecipeError: If there is no such dataset, or its path is missing or not wanted.
        InputError: If the file does not exist.
    """
    name, colon, path = text.partition(":")
    if name.replace("-", "_") not in DATASETS.names():
        endings, ending = file_endings(), Path(text).suffix
        if module := endings.get(ending, endings.get("")):
            if _is_file(text):
                return Dataset(text, module, Path(text), only)
            if "/" in text or (ending and ending in endings):
                raise InputError(f"no file of questions at '{text[:200]}'")
    module = DATASETS.load(name)
    if module.PATH is None and colon:
        raise RecipeError(f"dataset '{name}' takes no path, got '{path}'")
    if module.PATH is not None and not path:
        raise RecipeError(f"dataset '{name}' needs a path: {name}:PATH, {module.PATH}")
    return Dataset(text, module, Path(path) if path else None, only)


def chosen(examples: Iterable[Example], only: Sequence[str], dataset: str) -> Iterator[Example]:
    """The questions of some kinds and tasks, by the names that their scores have.

    Args:
        examples: All of a dataset.
        only: `clip` or `image`, whose questions are asked alone; a task; `multi_turn`.
        dataset: Its name, for the error.

    Raises:
        InputError: Behind the last example, if one of `only` has no question.
    """
    known = set[str]()
    for example in examples:
        names = [_names(example, question) for question in example.questions]
        known.update(*names)
        asked = [q for q, of in zip(example.questions, names, strict=True) if of & set(only)]
        if asked:
            yield replace(example, questions=tuple(asked))
    if missing := [name for name in only if name not in known]:
        raise InputError(
            f"dataset '{dataset}' has no question of '{missing[0][:60]}'; got --only"
            f" {','.join(only)[:60]}, expected some of {', '.join(sorted(known)) or 'none'}"
        )


def _names(example: Example, question: Question) -> set[str]:
    if example.chat:
        return {MULTI_TURN}
    return {question.task, "image" if len(example.frames) == 1 else "clip"}


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def file_endings() -> dict[str, ModuleType]:
    """The datasets that read files without `NAME:`, by the ending; an empty one is any other."""
    modules = [DATASETS.load(name) for name in DATASETS.names()]
    return {ending: module for module in modules for ending in getattr(module, "ENDINGS", ())}


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
        answerer: The model.
        examples: The questions.
        model_or_bundle: Its name, for the report.
        dataset: Its name, for the report.
        seed: Seed of the intervals.
        progress: Called with a line every two seconds.

    Raises:
        InputError: If a question does not fit the context, or none can be asked.
    """
    started = time.perf_counter()
    tally = _ask_all(answerer, examples, progress)
    if not tally.answers:
        reasons = "; ".join(f"{n} scenes left out: {why}" for why, n in tally.left_out.items())
        raise InputError(f"dataset '{dataset}' asks nothing" + (f": {reasons}" if reasons else ""))
    total = score(tally.answers, seed)
    return Evaluation(
        model_or_bundle=model_or_bundle,
        dataset=dataset,
        engine=answerer.engine,
        frames=answerer.frames,
        visual_tokens=answerer.visual_tokens,
        accuracy=total.accuracy,
        low=total.low,
        high=total.high,
        n=total.n,
        scenes=len({answer.scene for answer in tally.answers}),
        tasks=task_scores(tally.answers, seed),
        groups=group_scores(tally.answers, seed),
        asked=dict(tally.asked),
        left_out=dict(tally.left_out),
        ttft_ms=stat(tally.ttft_ms),
        bundle_bytes=answerer.bundle_bytes,
        seconds=round(time.perf_counter() - started, 3),
        not_measured=_not_measured(answerer, tally),
    )


def _ask_all(
    answerer: Answerer, examples: Iterable[Example], progress: Callable[[str], None]
) -> _Tally:
    tally, reported = _Tally(), time.perf_counter()
    for example in examples:
        _ask(answerer, example, tally)
        if time.perf_counter() - reported > PAUSE_S and tally.answers:
            reported, n = time.perf_counter(), len(tally.answers)
            accuracy = sum(answer.right for answer in tally.answers) / n
            progress(f"{n} questions asked, {accuracy:.1%} right so far")
    return tally


def _ask(answerer: Answerer, example: Example, tally: _Tally) -> None:
    count, frames = len(example.frames), answerer.frames
    if count not in (1, frames):
        what = "clips" if frames == 1 else f"clips of {count} frames"
        takes = "images" if frames == 1 else f"{frames} frames"
        tally.left_out[f"{what}, the model takes {takes}"] += 1
        return
    if example.video and answerer.picker:
        raise InputError(
            f"the bundle picks the frames of a video by '{answerer.picker}', and evaluate shows"
            f" those of scene '{example.scene}' evenly in time; give its frames as images"
        )
    kind = "image" if count == 1 else "clip"
    try:
        answerer.set_frames(example.frames * (frames if count == 1 else 1))
        for turn, question in enumerate(example.questions):
            reply = answerer.ask(question.prompt, follow_up=example.chat and turn > 0)
            task = MULTI_TURN if example.chat else question.task
            correct = right(reply.text, question.answer)
            tally.answers.append(ScoredAnswer(example.scene, task, kind, correct))
            tally.asked["still as clip" if count < frames else kind] += 1
            if reply.ttft_ms is not None:
                tally.ttft_ms.append(reply.ttft_ms)
    except InputError as cause:
        raise InputError(f"scene '{example.scene}': {cause}") from cause


def _not_measured(answerer: Answerer, tally: _Tally) -> dict[str, str]:
    reasons = {}
    if not tally.ttft_ms:
        reasons["ttft_ms"] = f"{answerer.engine} does not time its answers"
    if answerer.bundle_bytes is None:
        reasons["bundle_bytes"] = "a model was asked, not a bundle"
    return reasons
