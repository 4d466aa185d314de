"""Answers of generated text: a question about an image, tokens, prefill and decode."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

from edgevlm.bundle.measures import stat_of
from edgevlm.bundle.plan import Plan
from edgevlm.errors import InputError
from edgevlm.profiling.document import Profile
from edgevlm.profiling.measurements import (
    Measurements,
    Null,
    ProfileRequest,
    Sections,
    TimedAnswer,
)
from edgevlm.profiling.recording import Recorder, TimedCall
from edgevlm.profiling.sections import TextAnswer, TextQuestion
from edgevlm.profiling.stages import share_of
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.contract import Loop
from edgevlm.runtimes.loops.text import TextLoop

PROMPT = "What is in this picture?"
UNCALLED = "an answer to this question does not call every function"


class Asking:
    """A loop and the question that it is asked again and again."""

    def __init__(self, loop: Loop, request: ProfileRequest) -> None:
        """Read the image.

        Raises:
            InputError: If the image cannot be read, or the bundle answers no questions.
        """
        if not isinstance(loop, TextLoop):
            raise InputError(f"no question here: {loop.usage}")
        self.loop, self.request = loop, request
        self.prompt = PROMPT if request.prompt is None else request.prompt
        self.image = images.load(request.picture, loop.room())
        if not loop.blocks.keeps_all:  # held all the time: no more pixels than the views have
            self.image = self.image.resize((loop.room().width, loop.room().height))

    def answer(self, recorder: Recorder) -> TimedAnswer:
        """One answer in a new conversation, with its calls."""
        loop, tokens = self.loop, self.request.tokens_generated
        frames = [self.image] * loop.plan.host.image.frames
        loop.forget()
        recorder.clear()
        start = time.perf_counter()
        answer = loop.ask(self.prompt, lambda: [loop.see(frames)], tokens)
        end = time.perf_counter()
        recorder.sample_memory(now=True)
        if len(answer.token_ids) < tokens:
            raise InputError(
                f"the context has room for {len(answer.token_ids)} tokens after the prompt, not for"
                f" {tokens}; generate fewer, or export with a larger --context"
            )
        return TimedAnswer(answer, start, end, tuple(recorder.calls), tuple(recorder.memory))

    @contextmanager
    def alike(self) -> Iterator[None]:
        """No token ends an answer, so that all answers have equally many."""
        loop, plan = self.loop, self.loop.plan
        loop.plan = replace(plan, host=replace(plan.host, stop_ids=()))
        try:
            yield
        finally:
            loop.plan = plan

    @staticmethod
    def sample(timed: TimedAnswer) -> tuple[float | None, float | None]:
        """Time to first token, and tokens per second, of one of many answers."""
        speed = timed.answer.decode_tokens_per_s or 0.0
        return round(timed.answer.ttft_ms, 3), round(speed, 3)


def question(asking: Asking, answers: Sequence[TimedAnswer]) -> TextQuestion:
    """What was asked."""
    first = answers[0].answer
    return TextQuestion(
        asking.request.picture.name, asking.prompt, first.visual_tokens, first.prompt_tokens,
        len(first.token_ids),
    )  # fmt: skip


def sections(measured: Measurements) -> Sections:
    """The section `text`, and the two figures beside it."""
    answers = measured.session.answers
    return Sections(text_answer(measured), None, ttft_ms(answers), decode_tokens_per_s(answers))


def nulls(found: Sections, sustained: bool) -> list[Null]:
    """Why the sections of other answers are null, and what was not known."""
    assert found.text is not None
    return [
        ("text.token_floor_ms", found.text.token_floor_ms is None, "the bandwidth is not known"),
        ("embedding", True, "the bundle answers with text"),
        ("video", True, "the bundle answers with text"),
    ]


def compared(profile: Profile, request: ProfileRequest) -> dict[str, tuple[object, object]]:
    """What a profile says and what was asked, by the name of the field."""
    asked = None if profile.text is None else profile.text.question
    prompt = PROMPT if request.prompt is None else request.prompt
    return {
        "text.question.prompt": (asked and asked.prompt, prompt),
        "text.question.tokens_generated": (
            asked and asked.tokens_generated, request.tokens_generated,
        ),
    }  # fmt: skip


def named(profile: Profile, image: str) -> Profile:
    """The profile with the name that the image has here."""
    assert profile.text is not None
    return replace(
        profile, text=replace(profile.text, question=replace(profile.text.question, image=image))
    )


def text_answer(measured: Measurements) -> TextAnswer:
    """The section `text` of a profile."""
    assert isinstance(measured.question, TextQuestion)
    plan, bandwidth = measured.bundle.plan, measured.bandwidth_bytes_per_s
    states, token_bytes = plan.host.states, bytes_per_token(plan)
    floor = None if bandwidth is None else round(token_bytes / bandwidth * 1e3, 4)
    between = [ms for answer in measured.session.answers for ms in _token_ms(plan, answer)]
    return TextAnswer(
        question=measured.question,
        token_ms=stat_of(between),
        kv_bytes=states.bytes,
        kv_bytes_per_token=states.row_bytes,
        token_bytes=token_bytes,
        token_floor_ms=floor,
    )


def ttft_ms(answers: Sequence[TimedAnswer]) -> float:
    """Median time to first token."""
    each: list[float] = [answer.answer.ttft_ms for answer in answers]
    return round(statistics.median(each), 4)


def decode_tokens_per_s(answers: Sequence[TimedAnswer]) -> float:
    """Median over the answers of the tokens after the first, per second."""
    return round(statistics.median(a.answer.decode_tokens_per_s or 0.0 for a in answers), 4)


def bytes_per_token(plan: Plan[Any]) -> int:
    """Bytes of weights that one decoded token reads."""
    return sum(b.weights_bytes for b in plan.blocks if b.stage in ("decoder", "head"))


def call_shares(plan: Plan[Any], calls: Sequence[TimedCall], prefilled: bool = False) -> list[str]:
    """The time share of each call: `decode` of single prompt rows is prefill.

    Args:
        plan: Of the bundle.
        calls: In any order; the shares are in the same.
        prefilled: Whether the first token came before them.
    """
    logits = [call.start for call in calls if (call.kind, call.function) == ("run", "logits")]
    first = float("-inf") if prefilled else min(logits, default=float("inf"))

    def share(call: TimedCall) -> str:
        single_row = call.kind == "run" and call.function == "decode" and call.start < first
        function = "prefill" if single_row else call.function
        return share_of(plan.kind, plan.block(call.block).stage, function)

    return [share(call) for call in calls]


def _token_ms(plan: Plan[Any], answer: TimedAnswer) -> list[float]:
    """From each end of the head to the next: tokens of which everything is counted."""
    last = plan.stage("head")[-1].name
    ends = [call.end for call in answer.calls if (call.kind, call.block) == ("step", last)]
    return [(after - before) * 1e3 for before, after in pairwise(ends)]
