"""Measure a bundle that is open: answers with a clock, then what would disturb them.

    sensors -> warm-up -> timed answers -> a watched answer -> minutes without a pause -> sensors
            -> loads and evictions -> operators -> `profile.Profile`

Peaks of memory are read after the last answer, before anything that only a profile does.
`edgevlm.profiling.figures` makes the figures of what is noted here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from edgevlm.bundle.plan import Plan
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.profiling import bandwidth, figures, sensors
from edgevlm.profiling.document import (
    Operator,
    Placed,
    Profile,
    Question,
    SustainedSample,
    stat,
)
from edgevlm.profiling.figures import Answered, Measured, Opened
from edgevlm.profiling.recording import Recorder, recording
from edgevlm.runtimes.engine import Engine, Key
from edgevlm.runtimes.inspection import OperatorTimes
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.residency.memory import peak_rss_bytes, resident_bytes
from edgevlm.runtimes.residency.resident import ResidentBlocks
from edgevlm.runtimes.residency.streamed import StreamedBlocks

PHOTO = Path(__file__).parents[1] / "photos" / "scene.png"
PROMPT = "What is in this picture?"
WARM_UPS, OPENINGS = 2, 3


@dataclass(frozen=True)
class Request:
    """What to measure with.

    Attributes:
        image: A picture; for a clip it stands for each frame. None is one of ours.
        prompt: The question.
        runs: Timed answers.
        tokens_generated: Tokens of each answer, whatever the model says in them.
        minutes: Further answers without a pause; 0 is none.
    """

    image: Path | None = None
    prompt: str = PROMPT
    runs: int = 10
    tokens_generated: int = 16
    minutes: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        if self.runs < 1:
            raise InputError(f"runs must be at least 1, got {self.runs}")
        if self.tokens_generated < 2:
            raise InputError(
                f"tokens_generated must be at least 2, got {self.tokens_generated}: the first token"
                " is prefill's"
            )
        if not 0 <= self.minutes < 1e6:
            raise InputError(f"minutes must not be below 0, got {self.minutes}")


def profile(
    loop: TextLoop, request: Request = Request(), progress: Callable[[str], None] = lambda _: None
) -> Profile:
    """Profile a loop's bundle with its engine, threads and budget.

    Raises:
        InputError: If the picture cannot be read, or the answer does not fit the context.
    """
    return figures.figures(measure(loop, request, progress))


def measure(loop: TextLoop, request: Request, progress: Callable[[str], None]) -> Measured:
    """Everything that a profile needs the loop for."""
    path = request.image or PHOTO
    picture, engine = images.load(path), loop.blocks.engine
    progress("measure how fast memory is read")
    speed = bandwidth.read_bytes_per_s(engine.threads or 1)
    before = sensors.look()
    with recording(loop) as recorder, _endless(loop):

        def answer() -> Answered:
            return _answer(loop, recorder, picture, request)

        progress(f"{WARM_UPS} answers to warm up")
        warm = tuple(answer() for _ in range(WARM_UPS))
        started, answers = sensors.look(), list[Answered]()
        with sensors.Meter() as meter:
            for index in range(request.runs):
                progress(f"answer {index + 1} of {request.runs}")
                answers.append(answer())
        ended = sensors.look()
        recorder.watch_footprint = True
        answer()
        recorder.watch_footprint = False
        sustained = _sustained(answer, request.minutes, progress)
        peak, after = peak_rss_bytes(), sensors.look()
        openings: tuple[Opened, ...] = ()
        if isinstance(recorder.blocks, ResidentBlocks):
            progress("load and evict each block")
            openings = tuple(_reopen(loop.plan, recorder) for _ in range(OPENINGS))
        loop.forget()
    calls = figures.calls(loop.plan, answers)
    progress("run each operator under the engine's profiler")
    first = answers[0].answer
    streamed = loop.blocks if isinstance(loop.blocks, StreamedBlocks) else None
    return Measured(
        bundle=loop.bundle,
        engine=engine.name,
        engine_version=engine.summary(),
        threads=engine.threads,
        question=Question(
            path.name, request.prompt, first.visual_tokens, first.prompt_tokens,
            len(first.token_ids),
        ),
        bandwidth_bytes_per_s=speed,
        warm_ups=warm,
        answers=tuple(answers),
        sustained=sustained,
        openings=openings,
        budget_bytes=streamed.budget_bytes if streamed else None,
        timings=streamed.timings if streamed else None,
        peak_rss_bytes=peak,
        compile_ms=dict(engine.compile_ms),
        peak_footprint_bytes=recorder.peak_footprint_bytes,
        sensors=(before, started, ended, after),
        rail_joules=meter.joules,
        placed=_placed(engine, calls),
    )  # fmt: skip


def _answer(loop: TextLoop, recorder: Recorder, picture: Image.Image, request: Request) -> Answered:
    """One answer in a new conversation, with what the recorder noted."""
    frames = [picture] * loop.plan.host.image.frames
    loop.forget()
    recorder.clear()
    start = time.perf_counter()
    answer = loop.ask(request.prompt, lambda: [loop.see(frames)], request.tokens_generated)
    end = time.perf_counter()
    recorder.look(now=True)
    if len(answer.token_ids) < request.tokens_generated:
        raise InputError(
            f"the context has room for {len(answer.token_ids)} tokens after the prompt, not for"
            f" {request.tokens_generated}; generate fewer, or export with a larger --context"
        )
    return Answered(answer, start, end, tuple(recorder.marks), tuple(recorder.memory))


@contextmanager
def _endless(loop: TextLoop) -> Iterator[None]:
    """No token ends an answer, so that each has as many as the others."""
    plan = loop.plan
    loop.plan = replace(plan, host=replace(plan.host, stop_ids=()))
    try:
        yield
    finally:
        loop.plan = plan


def _sustained(
    answer: Callable[[], Answered], minutes: float, progress: Callable[[str], None]
) -> tuple[SustainedSample, ...] | None:
    """Answers without a pause until the minutes are over; None for no minutes."""
    if not minutes:
        return None
    found, start = list[SustainedSample](), time.perf_counter()
    while (seconds := time.perf_counter() - start) < minutes * 60:
        progress(f"answers without a pause: {seconds:.0f} s of {minutes * 60:.0f}")
        made = answer()
        found.append(
            SustainedSample(
                round(made.end - start, 3),
                round(made.answer.decode_tokens_per_s or 0.0, 3),
                round(made.answer.ttft_ms, 3),
                sensors.look().temperature_c,
            )
        )
    return tuple(found)


def _reopen(plan: Plan[Any], recorder: Recorder) -> Opened:
    """Close every function, then load each and run it once: all is there again."""
    engine, keys = recorder.engine, [(b.name, f.name) for b in plan.blocks for f in b.functions]
    recorder.clear()
    for key in keys:
        engine.unload(*key)
    evictions = tuple(recorder.marks)
    recorder.clear()
    resident: dict[Key, int] = {}
    start = time.perf_counter()
    for key in keys:
        held = resident_bytes()
        engine.load(*key, engine.resident_mode)
        engine.run(*key)
        resident[key] = max(0, resident_bytes() - held)
        recorder.look(now=True)
    end = time.perf_counter()
    marks, memory = tuple(recorder.marks), tuple(recorder.memory)
    return Opened(start, end, evictions, marks, memory, resident)


def _placed(engine: Engine, calls: Mapping[Key, int]) -> Placed | str:
    """What the engine says of its operators; the reason where it says nothing."""
    try:
        found = engine.operators(calls)
    except EdgeVLMError as cause:  # what was measured before is not lost for it
        return str(cause)
    if isinstance(found, str):
        return found
    timed = found.operators
    operators = None if timed is None else tuple(_operator(one) for one in timed)
    return Placed(operators, found.devices, found.fallback, found.not_measured)


def _operator(found: OperatorTimes) -> Operator:
    took = stat(found.times_ms)
    assert took is not None
    return Operator(
        found.block, found.function, found.name, found.operator, found.module, found.device,
        found.calls, took,
    )  # fmt: skip
