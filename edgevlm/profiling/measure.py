"""Measure an open bundle that generates text: timed answers first, then what would disturb them.

    sensors -> warm-up -> timed answers -> one answer with private memory sampled
            -> minutes without a pause -> sensors -> loads and evictions -> operators -> `Profile`

Peaks of memory are read after the last answer, before anything that only a profile does.
`edgevlm.profiling.figures` turns the measurements into a profile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from edgevlm.bundle.measures import OperatorReport
from edgevlm.bundle.plan import Plan
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.profiling import figures
from edgevlm.profiling.document import Profile
from edgevlm.profiling.machine import bandwidth
from edgevlm.profiling.machine.sensors import PowerMeter, read_sensors
from edgevlm.profiling.measurements import Measurements, Opening, Session, TimedAnswer
from edgevlm.profiling.recording import Recorder, recording
from edgevlm.profiling.sections import SustainedSample, TextQuestion
from edgevlm.runtimes.engine import Engine, Key
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.residency.memory import peak_rss_bytes, resident_bytes
from edgevlm.runtimes.residency.resident import ResidentBlocks
from edgevlm.runtimes.residency.streamed import StreamedBlocks

PHOTO = Path(__file__).parents[1] / "photos" / "scene.png"
PROMPT = "What is in this picture?"
WARM_UPS, OPENINGS = 2, 3

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ProfileRequest:
    """What to measure with.

    Attributes:
        image: An image; a clip repeats it for each frame. None takes a packaged one.
        prompt: The question.
        runs: Timed answers.
        tokens_generated: Tokens of each answer; stop tokens do not end it.
        minutes: Further answers without a pause; 0 is none.
    """

    image: Path | None = None
    prompt: str = PROMPT
    runs: int = 10
    tokens_generated: int = 16
    minutes: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a request that measures nothing."""
        if self.runs < 1:
            raise InputError(f"runs must be at least 1, got {self.runs}")
        if self.tokens_generated < 2:
            raise InputError(
                f"tokens_generated must be at least 2, got {self.tokens_generated}: the first token"
                " is part of prefill"
            )
        if not 0 <= self.minutes < 1e6:
            raise InputError(f"minutes must not be below 0, got {self.minutes}")


def profile(
    loop: TextLoop,
    request: ProfileRequest = ProfileRequest(),
    progress: Progress = lambda _: None,
) -> Profile:
    """Profile a loop's bundle with its engine, threads and budget.

    Raises:
        InputError: If the image cannot be read, or the answer does not fit the context.
    """
    return figures.text_profile(measure(loop, request, progress))


def measure(loop: TextLoop, request: ProfileRequest, progress: Progress) -> Measurements:
    """All measurements of a profile."""
    path = request.image or PHOTO
    image, engine = images.load(path), loop.blocks.engine
    progress("measure the memory bandwidth")
    threads = engine.threads
    bytes_per_s = bandwidth.read_bytes_per_s(threads or 1)
    session = _session(_Asking(loop, image, request), progress)
    progress("run each operator under the engine's profiler")
    first = session.answers[0].answer
    streamed = loop.blocks if isinstance(loop.blocks, StreamedBlocks) else None
    return Measurements(
        bundle=loop.bundle,
        engine=engine.name,
        engine_version=engine.summary(),
        threads=threads,
        question=TextQuestion(
            path.name, request.prompt, first.visual_tokens, first.prompt_tokens,
            len(first.token_ids),
        ),
        bandwidth_bytes_per_s=bytes_per_s,
        session=session,
        budget_bytes=streamed.budget_bytes if streamed else None,
        timings=streamed.timings if streamed else None,
        operators=_operators(engine, figures.calls_per_answer(loop.plan, session.answers)),
        compile_ms=dict(engine.compile_ms),
    )  # fmt: skip


class _Asking(NamedTuple):
    """A loop and the question that it is asked again and again."""

    loop: TextLoop
    image: Image.Image
    request: ProfileRequest

    def answer(self, recorder: Recorder) -> TimedAnswer:
        """One answer in a new conversation, with its calls."""
        loop, request = self.loop, self.request
        frames = [self.image] * loop.plan.host.image.frames
        loop.forget()
        recorder.clear()
        start = time.perf_counter()
        answer = loop.ask(request.prompt, lambda: [loop.see(frames)], request.tokens_generated)
        end = time.perf_counter()
        recorder.sample_memory(now=True)
        if len(answer.token_ids) < request.tokens_generated:
            raise InputError(
                f"the context has room for {len(answer.token_ids)} tokens after the prompt, not for"
                f" {request.tokens_generated}; generate fewer, or export with a larger --context"
            )
        return TimedAnswer(answer, start, end, tuple(recorder.calls), tuple(recorder.memory))


def _session(asking: _Asking, progress: Progress) -> Session:
    """All answers, then loads and evictions where every block stays in memory."""
    loop, request = asking.loop, asking.request
    before = read_sensors()
    with recording(loop) as recorder, _without_stop_tokens(loop):
        progress(f"{WARM_UPS} warm-up answers")
        warm_ups = tuple(asking.answer(recorder) for _ in range(WARM_UPS))
        started, answers = read_sensors(), list[TimedAnswer]()
        with PowerMeter() as meter:
            for index in range(request.runs):
                progress(f"answer {index + 1} of {request.runs}")
                answers.append(asking.answer(recorder))
        ended = read_sensors()
        recorder.sample_footprint = True
        asking.answer(recorder)
        recorder.sample_footprint = False
        sustained = _sustained(lambda: asking.answer(recorder), request.minutes, progress)
        peak, after = peak_rss_bytes(), read_sensors()
        openings: tuple[Opening, ...] = ()
        if isinstance(recorder.blocks, ResidentBlocks):
            progress("load and evict each block")
            openings = tuple(_reopen(loop.plan, recorder) for _ in range(OPENINGS))
        loop.forget()
    return Session(
        warm_ups=warm_ups,
        answers=tuple(answers),
        sustained=sustained,
        openings=openings,
        peak_rss_bytes=peak,
        peak_footprint_bytes=recorder.peak_footprint_bytes,
        sensors=(before, started, ended, after),
        rail_joules=meter.joules,
    )


@contextmanager
def _without_stop_tokens(loop: TextLoop) -> Iterator[None]:
    """No token ends an answer, so that all answers have equally many."""
    plan = loop.plan
    loop.plan = replace(plan, host=replace(plan.host, stop_ids=()))
    try:
        yield
    finally:
        loop.plan = plan


def _sustained(
    answer: Callable[[], TimedAnswer], minutes: float, progress: Progress
) -> tuple[SustainedSample, ...] | None:
    """Answers without a pause until the minutes are over; None for no minutes."""
    if not minutes:
        return None
    samples, start = list[SustainedSample](), time.perf_counter()
    while (seconds := time.perf_counter() - start) < minutes * 60:
        progress(f"answers without a pause: {seconds:.0f} s of {minutes * 60:.0f}")
        timed = answer()
        samples.append(
            SustainedSample(
                seconds=round(timed.end - start, 3),
                answer_ms=round(timed.ms, 3),
                ttft_ms=round(timed.answer.ttft_ms, 3),
                decode_tokens_per_s=round(timed.answer.decode_tokens_per_s or 0.0, 3),
                temperature_c=read_sensors().temperature_c,
            )
        )
    return tuple(samples)


def _reopen(plan: Plan[Any], recorder: Recorder) -> Opening:
    """Unload every function, then load each and run it once: all are resident again."""
    engine, keys = recorder.engine, [(b.name, f.name) for b in plan.blocks for f in b.functions]
    recorder.clear()
    for key in keys:
        engine.unload(*key)
    evictions = tuple(recorder.calls)
    recorder.clear()
    resident: dict[Key, int] = {}
    start = time.perf_counter()
    for key in keys:
        before = resident_bytes()
        engine.load(*key, engine.resident_mode)
        engine.run(*key)
        resident[key] = max(0, resident_bytes() - before)
        recorder.sample_memory(now=True)
    end = time.perf_counter()
    calls, memory = tuple(recorder.calls), tuple(recorder.memory)
    return Opening(start, end, evictions, calls, memory, resident)


def _operators(engine: Engine, calls: Mapping[Key, int]) -> OperatorReport | str:
    """What the engine reports of its operators; the reason where it reports nothing."""
    try:
        return engine.operators(calls)
    except EdgeVLMError as cause:  # what was measured before is not lost for it
        return str(cause)
