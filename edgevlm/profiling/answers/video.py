"""Answers of one video: its text, its steps, its frames; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from edgevlm.profiling.sections import VideoAnswer, VideoQuestion
from edgevlm.profiling.stages import share_of
from edgevlm.runtimes.loops.contract import Loop, VideoRequest
from edgevlm.runtimes.loops.video.loop import DiffusionLoop

REASON = "the bundle answers with a video"
UNCALLED = "a rule of the bundle spares every call"
PROMPT = "a red circle moves left"


class Asking:
    """A loop, and the text whose video it makes again and again."""

    def __init__(self, loop: Loop, request: ProfileRequest) -> None:
        """Check the request.

        Raises:
            InputError: If there is an image, a number of tokens is asked for, or the bundle makes
                no videos.
        """
        if not isinstance(loop, DiffusionLoop):
            raise InputError(f"no video here: {loop.usage}")
        if request.image is not None:
            raise InputError("a video is made of a text; leave out --image")
        if request.tokens_generated != ProfileRequest.tokens_generated:
            raise InputError("a video has no tokens; leave out --tokens-generated")
        self.loop, self.request = loop, request
        self.video = VideoRequest(prompt=PROMPT if request.prompt is None else request.prompt)

    def answer(self, recorder: Recorder) -> TimedAnswer:
        """One video, with its calls."""
        self.loop.forget()
        recorder.clear()
        start = time.perf_counter()
        _, made = self.loop.video(self.video)
        end = time.perf_counter()
        recorder.sample_memory(now=True)
        return TimedAnswer(made, start, end, tuple(recorder.calls), tuple(recorder.memory))

    @contextmanager
    def alike(self) -> Iterator[None]:
        """All answers are alike as they are."""
        yield

    @staticmethod
    def sample(timed: TimedAnswer) -> tuple[float | None, float | None]:
        """A video has no tokens."""
        return None, None


def question(asking: Asking, answers: Sequence[TimedAnswer]) -> VideoQuestion:
    """What was asked."""
    host, made = asking.loop.plan.host, answers[0].answer
    return VideoQuestion(
        prompt=asking.video.prompt,
        frames=host.frames,
        height=host.height,
        width=host.width,
        steps=host.schedule.steps,
        guidance=host.guidance,
        steps_run=made.steps_run,
        steps_skipped=made.steps_skipped,
        steps_forecast=made.steps_forecast,
    )


def sections(measured: Measurements) -> Sections:
    """The section `video`."""
    made = [answer.answer for answer in measured.session.answers]
    assert isinstance(measured.question, VideoQuestion)
    found = VideoAnswer(
        question=measured.question,
        text_ms=stat_of([each.text_ms for each in made]),
        denoise_ms=stat_of([each.denoise_ms for each in made]),
        frames_ms=stat_of([each.vae_ms for each in made]),
        loads=made[-1].loads - made[-2].loads if len(made) > 1 else 0,
    )
    return Sections(None, None, None, None, found)


def call_shares(plan: Plan[Any], calls: Sequence[TimedCall], prefilled: bool = False) -> list[str]:
    """The time share of each call: its stage."""
    return [share_of(plan.kind, plan.block(c.block).stage, c.function) for c in calls]


def nulls(found: Sections, sustained: bool) -> list[Null]:
    """Why everything of the other answers is null."""
    names = ("text", "embedding", "ttft_ms", "decode_tokens_per_s")
    several = ("sustained.ttft_ms", "sustained.decode_tokens_per_s")
    return [(name, True, REASON) for name in names] + [
        (name, sustained, REASON) for name in several
    ]


def compared(profile: Profile, request: ProfileRequest) -> dict[str, tuple[object, object]]:
    """What a profile says and what was asked, by the name of the field."""
    if request.prompt is None:
        return {}
    asked = None if profile.video is None else profile.video.question.prompt
    return {"video.question.prompt": (asked, request.prompt)}


def named(profile: Profile, image: str) -> Profile:
    """The profile as it is: no image was read."""
    return profile
