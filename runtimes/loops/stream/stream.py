"""Frames into the cache as they come, and questions in between.

    frame      encode -> `stream` keeps K tokens -> its rows are appended to the cache
    question   its rows follow the last frame, the answer follows them; then both are taken back

So the cache holds the opening, and frames, and is after a question what it was before. The end of
the context is kept free for questions; where a frame does not fit any more, the oldest frames
leave, an eighth of the cache at a time, and the positions of the others fall.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from edgevlm.bundle.kinds.shared.reduce import no_stream
from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.errors import InputError
from edgevlm.runtimes import values
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.sampling import chooser
from edgevlm.runtimes.loops.sequence import PromptRows, assemble
from edgevlm.runtimes.loops.spelling import Visual, check_length
from edgevlm.runtimes.loops.stream import parts, source
from edgevlm.runtimes.loops.stream.events import (
    MINUTE,
    End,
    Event,
    FrameSeen,
    Refused,
    SceneChange,
    StreamAnswer,
)
from edgevlm.runtimes.loops.stream.request import StreamRequest
from edgevlm.runtimes.loops.stream.ring import Frames, Ring
from edgevlm.runtimes.loops.stream.window import evict
from edgevlm.runtimes.loops.text import TextLoop, TextStream
from edgevlm.runtimes.residency.memory import peak_rss_bytes

RING = 8  # views that wait
QUESTIONS = 64  # that wait
QUESTION_ROWS = 32  # of the context that are kept free for a question, beside its answer
EVICTED_SHARE = 8  # one part of so many of the frames' rows leaves at a time, at least
WAIT_S = 0.1  # how often questions are looked for while no frame comes
CHANGED_COSINE = 0.7  # a patch with a lower one, with that at its place before, has changed


class Stream:
    """One stream over an open bundle; `events` begins its conversation anew.

    `ask` and `stop` may be called by other threads.

    Raises:
        InputError: If the bundle takes no streams.
    """

    def __init__(self, loop: TextLoop, request: StreamRequest) -> None:
        self.loop, self.request, self.plan = loop, request, loop.plan
        check(loop)
        self._ring = Ring(RING, source.is_live(request.source, request.pace))
        self._asked = queue.Queue[str](QUESTIONS)
        self._frames: deque[tuple[int, int]] = deque()  # rows and first position of each, cached
        self._parts = parts.frames(self.plan)
        self._previous: Array | None = None
        self._stopped = False
        self.seconds, self._due = 0.0, request.ask_every
        self.seen = self.tokens = self.evicted = self.scenes = self.answers = self.refused = 0
        self._sink = self._kept_free = 0

    def _begin(self) -> None:
        """Write the opening into an empty cache.

        Raises:
            InputError: If the context is too short for a stream.
        """
        loop, request = self.loop, self.request
        loop.forget()
        loop.start_turn()
        for array in loop.arrays.states:
            array[:] = 0.0  # the whole cache is in memory from here on, not a page after the other
        length = self.plan.host.image.frames / request.fps  # what a text says of a clip
        nothing = replace(_nothing(self.plan), duration=length)
        loop.prefill(self._rows(parts.opening(self.plan, request.system), nothing))
        self._sink = loop.length
        self._kept_free = request.max_new_tokens + self._rows_of_closing() + QUESTION_ROWS
        most = self._sink + self.plan.host.stream.tokens + self._kept_free + self.plan.host.chunk
        if most > self.plan.host.states.tokens:
            raise InputError(
                f"the context of {self.plan.host.states.tokens} is too short for a stream: the"
                f" opening, a frame and a question with {request.max_new_tokens} tokens of answer"
                f" take {most}; export with --context {2 * most}"
            )

    def ask(self, prompt: str) -> None:
        """Ask a question, which is answered behind the frame that is being seen.

        Raises:
            InputError: If it is no text, or too many wait.
        """
        try:
            self._asked.put_nowait(values.text("the prompt", prompt))
        except queue.Full as cause:
            raise InputError(
                f"{QUESTIONS} questions wait for their answers; ask again when some have come"
            ) from cause

    def stop(self) -> None:
        """End the stream: what waits is still seen."""
        self._stopped = True
        self._ring.close()

    def events(self) -> Iterator[Event]:
        """What happens, until the source ends; the last is an `End`.

        Raises:
            InputError: If the source gives no frame at all, or the context is too short.
        """
        self._begin()
        request, begun, measured = self.request, time.perf_counter(), self.request.sensors()
        image = self.plan.host.image
        source.start(
            request.source, self._ring, request.fps, request.pace, image.depth,
            lambda picture: images.shrink(picture, image),
        )  # fmt: skip
        try:
            while not self._ring.ended:
                frames = self._ring.take(WAIT_S)
                if frames is not None:
                    yield from self._see(frames)
                if self.seen:
                    yield from self._answers()
            if not self.seen:
                raise self._ring.error or InputError("the stream has no frame")
            yield from self._answers()
            if request.prompt is not None and request.ask_every is None:
                self._asked.put(request.prompt)
            yield from self._answers()
            while request.asking() and not self._stopped:
                time.sleep(WAIT_S)
                yield from self._answers()
            yield from self._answers()
            yield self._end(time.perf_counter() - begun, measured())
        finally:
            self._ring.close()

    def _see(self, frames: Frames) -> Iterator[Event]:
        """Append a view to the cache."""
        started, loop = time.perf_counter(), self.loop
        visual, features = loop.see_view(frames.pictures, self._previous)
        changed = _changed(self._previous, features)
        self._previous, self.seconds = features, frames.seconds[-1]
        view = min(self.seen // self.plan.host.image.depth, len(self._parts) - 1)
        self.seen += len(frames.pictures)
        part, visual = self._parts[view], self._placed(visual, view, frames.seconds)
        rows = self._fit(lambda: self._rows(part, visual), self._kept_free)
        self._frames.append((len(rows.rows), loop.position))
        loop.prefill(rows)
        self.tokens += len(visual.tokens)
        if changed > self.request.scene and self.seen > len(frames.pictures):
            self.scenes += 1
            yield SceneChange(self.seconds, changed, self.request.scene)
        yield FrameSeen(
            self.seconds, self.seen, self._ring.dropped, len(visual.tokens), changed, loop.length,
            (time.perf_counter() - started) * 1e3,
        )  # fmt: skip
        if self._due is not None and self.seconds >= self._due and self.request.ask_every:
            self._due += self.request.ask_every * (
                1 + (self.seconds - self._due) // self.request.ask_every
            )
            with suppress(InputError):  # as many wait as may: they are asked of the same stream
                self.ask(self.request.prompt or "")

    def _answers(self) -> Iterator[Event]:
        """Answers to all questions that wait."""
        while not self._asked.empty():
            prompt = self._asked.get()
            try:
                answer = self._answer(prompt)
            except InputError as cause:
                self.refused += 1
                yield Refused(self.seconds, prompt, str(cause))
                continue
            self.answers += 1
            yield answer

    def _answer(self, prompt: str) -> StreamAnswer:
        """Answer a question, and take it back.

        Raises:
            InputError: If it does not fit the context.
        """
        started, loop, request = time.perf_counter(), self.loop, self.request
        tokens = self.plan.host.states.tokens
        check_length(
            loop.tokenizer, prompt, tokens - self._sink, f"the context has room for {tokens}"
        )
        part, nothing = parts.closing(self.plan, prompt), self._last()
        rows = self._fit(lambda: self._rows(part, nothing), 0)
        before = loop.length, loop.position
        try:
            loop.prefill(rows)
            choose = chooser(request.sampling)
            ids = [choose(loop.logits())]
            first = time.perf_counter()
            shown, room = TextStream(loop.tokenizer, request.on_text), tokens - loop.length
            most = min(request.max_new_tokens, max(room, 1))
            stopped = loop.generate(ids, most, choose, shown, None)
        finally:
            loop.go_back(*before)
        if stopped == "length" and most < request.max_new_tokens:
            stopped = "context"
        return StreamAnswer(
            self.seconds, prompt, shown.finish(), stopped, len(rows.rows), len(ids),
            (first - started) * 1e3, self.seen,
        )  # fmt: skip

    def _fit(self, rows: Callable[[], PromptRows], kept_free: int) -> PromptRows:
        """Rows for the end of the cache, once there is room for them.

        Raises:
            InputError: If there is not even without frames.
        """
        made, host = rows(), self.plan.host
        count = -(-len(made.rows) // host.chunk) * host.chunk  # a call writes all its rows
        most = host.states.tokens - kept_free - count
        if self.loop.length <= most:
            return made
        goal = min(most, self.loop.length - (host.states.tokens - self._sink) // EVICTED_SHARE)
        if not self._frames or self._sink > most:
            raise InputError(
                f"{len(made.rows)} rows do not fit the context of {host.states.tokens} beside the"
                " opening of the stream; ask a shorter question, or export with a larger --context"
            )
        gone, first = 0, self._frames[0][1]
        while self._frames and self.loop.length - gone > goal:
            gone += self._frames.popleft()[0]
            self.evicted += 1
        behind = self._frames[0][1] if self._frames else self.loop.position
        self._evict(gone, behind - first)
        return rows()

    def _evict(self, rows: int, shift: int) -> None:
        loop, stop = self.loop, self._sink + rows
        evict(self.plan, loop.arrays.states, self._sink, stop, loop.length, shift)
        self._frames = deque((count, at - shift) for count, at in self._frames)
        loop.go_back(loop.length - rows, loop.position - shift, self._sink)

    def _rows(self, part: parts.Part, visual: Visual) -> PromptRows:
        loop = self.loop
        return assemble(
            part.plan, part.items, loop.table, loop.tokenizer, "", [visual], loop.position
        )

    def _rows_of_closing(self) -> int:
        return len(self._rows(parts.closing(self.plan, ""), self._last()).rows)

    def _placed(self, visual: Visual, view: int, seconds: tuple[float, ...]) -> Visual:
        """Tokens of a view at their places in a clip, with its times."""
        image = self.plan.host.image
        times = np.full(image.frames, seconds[-1])
        times[view * image.depth :][: len(seconds)] = seconds[: image.frames - view * image.depth]
        positions = visual.positions + np.int32(view * self.plan.host.encoder.view_tokens)
        return replace(visual, positions=positions, times=tuple(times.tolist()))

    def _last(self) -> Visual:
        """No tokens, at the time of the last frame."""
        return replace(_nothing(self.plan), times=(self.seconds,) * self.plan.host.image.frames)

    def _end(self, wall_s: float, sensors: dict[str, Any]) -> End:
        error, minutes = self._ring.error, max(wall_s, 1e-9) / MINUTE
        return End(
            self.seconds, wall_s, self.seen, self._ring.dropped, self.tokens, self.evicted,
            self.scenes, self.answers, self.refused, self.seen / minutes, self.tokens / minutes,
            peak_rss_bytes(), str(error or ""), **sensors,
        )  # fmt: skip


def check(loop: TextLoop) -> None:
    """Refuse a bundle that takes no stream, and a loop that cannot.

    Raises:
        InputError: With what to do.
    """
    host = loop.plan.host
    if host.stream is None:
        reason = no_stream(host)
        do = f": {reason}" if reason else "; export it with --frames and --stream K"
        raise InputError(f"the bundle takes no streams{do}")
    if not loop.blocks.keeps_all:
        raise InputError("a stream keeps all blocks in memory; leave out --memory")


def _nothing(plan: VlmPlan) -> Visual:
    """A clip without tokens, which begins and ends at 0."""
    columns = plan.host.embedding.columns
    none = np.zeros((0, columns), np.float32), np.zeros(0, np.int32)
    return Visual(*none, (0.0,) * plan.host.image.frames)


def _changed(previous: Array | None, features: Array) -> float:
    """The share of patches whose features [N, C] are others than those of the view before."""
    if previous is None:
        return 1.0
    lengths = np.linalg.norm(previous, axis=1) * np.linalg.norm(features, axis=1)
    cosine = (previous * features).sum(1) / np.maximum(lengths, 1e-12)
    return float((cosine < CHANGED_COSINE).mean())
