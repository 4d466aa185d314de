"""Answers of one vector: one encode of an image, or of a text where a prompt is given."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from edgevlm.profiling.sections import EmbeddingAnswer, EmbeddingQuestion
from edgevlm.profiling.stages import share_of
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.contract import Loop
from edgevlm.runtimes.loops.encoder import EncoderLoop

REASON = "the bundle answers with an embedding"
UNCALLED = "one encoder is measured: that of texts with --prompt, else that of images"


class Asking:
    """A loop, and the image or text that it encodes again and again."""

    def __init__(self, loop: Loop, request: ProfileRequest) -> None:
        """Read the image.

        Raises:
            InputError: If the image cannot be read, there are an image and a text, a number of
                tokens is asked for, or the bundle gives no embeddings.
        """
        if not isinstance(loop, EncoderLoop):
            raise InputError(f"no embedding here: {loop.usage}")
        if request.image is not None and request.prompt is not None:
            raise InputError("one embedding is measured: give --image or --prompt, not both")
        if request.tokens_generated != ProfileRequest.tokens_generated:
            raise InputError("an embedding has no tokens; leave out --tokens-generated")
        self.loop, self.request, self.text = loop, request, request.prompt
        self.image = images.load(request.picture, loop.room())
        if not loop.blocks.keeps_all:  # held all the time: no more pixels than the view has
            self.image = self.image.resize((loop.room().width, loop.room().height))

    def answer(self, recorder: Recorder) -> TimedAnswer:
        """One embedding, with its calls."""
        self.loop.forget()
        recorder.clear()
        start = time.perf_counter()
        if self.text is None:
            frames = self.loop.plan.host.image.frames
            embedding = self.loop.embed([self.image] * frames)
        else:
            embedding = self.loop.embed_text(self.text)
        end = time.perf_counter()
        recorder.sample_memory(now=True)
        return TimedAnswer(embedding, start, end, tuple(recorder.calls), tuple(recorder.memory))

    @contextmanager
    def alike(self) -> Iterator[None]:
        """All answers are alike as they are."""
        yield

    @staticmethod
    def sample(timed: TimedAnswer) -> tuple[float | None, float | None]:
        """An embedding has no tokens."""
        return None, None


def question(asking: Asking, answers: Sequence[TimedAnswer]) -> EmbeddingQuestion:
    """What was encoded."""
    if asking.text is not None:
        return EmbeddingQuestion("text", asking.text)
    return EmbeddingQuestion("image", asking.request.picture.name)


def sections(measured: Measurements) -> Sections:
    """The section `embedding`."""
    answers = measured.session.answers
    assert isinstance(measured.question, EmbeddingQuestion)
    found = EmbeddingAnswer(
        question=measured.question,
        dimensions=len(answers[0].answer),
        encode_ms=stat_of([answer.ms for answer in answers]),
    )
    return Sections(None, found, None, None)


def call_shares(plan: Plan[Any], calls: Sequence[TimedCall], prefilled: bool = False) -> list[str]:
    """The time share of each call: its stage."""
    return [share_of(plan.kind, plan.block(c.block).stage, c.function) for c in calls]


def nulls(found: Sections, sustained: bool) -> list[Null]:
    """Why everything of generated text is null."""
    names = ("text", "video", "ttft_ms", "decode_tokens_per_s")
    several = ("sustained.ttft_ms", "sustained.decode_tokens_per_s")
    return [(name, True, REASON) for name in names] + [
        (name, sustained, REASON) for name in several
    ]


def compared(profile: Profile, request: ProfileRequest) -> dict[str, tuple[object, object]]:
    """What a profile says and what was asked, by the name of the field."""
    asked = None if profile.embedding is None else profile.embedding.question
    modality = "image" if request.prompt is None else "text"
    found: dict[str, tuple[object, object]] = {
        "embedding.question.modality": (asked and asked.modality, modality)
    }
    if request.prompt is not None:
        found["embedding.question.source"] = asked and asked.source, request.prompt
    return found


def named(profile: Profile, image: str) -> Profile:
    """The profile with the name that the image has here."""
    section = profile.embedding
    assert section is not None
    if section.question.modality != "image":
        return profile
    question = replace(section.question, source=image)
    return replace(profile, embedding=replace(section, question=question))
