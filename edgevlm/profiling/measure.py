"""Measure an open bundle: timed answers first, then what would disturb them.

    sensors -> warm-up -> timed answers -> one answer with private memory sampled
            -> minutes without a pause -> sensors -> loads and evictions -> operators -> `Profile`

Peaks of memory are read after the last answer, before anything that only a profile does.
What an answer is, the bundle's kind says (`profiling.answers`); `profiling.figures` turns the
measurements into a profile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from edgevlm.bundle.measures import OperatorReport
from edgevlm.bundle.plan import Plan
from edgevlm.errors import EdgeVLMError
from edgevlm.profiling import figures
from edgevlm.profiling.answers import answers_of
from edgevlm.profiling.document import Profile
from edgevlm.profiling.machine import bandwidth
from edgevlm.profiling.machine.sensors import PowerMeter, read_sensors
from edgevlm.profiling.measurements import (
    Measurements,
    Opening,
    ProfileRequest,
    Session,
    TimedAnswer,
)
from edgevlm.profiling.recording import Recorder, recording
from edgevlm.profiling.sections import SustainedSample
from edgevlm.runtimes.engine import Engine, Key
from edgevlm.runtimes.loops.contract import Loop
from edgevlm.runtimes.residency.memory import peak_rss_bytes, resident_bytes
from edgevlm.runtimes.residency.resident import ResidentBlocks
from edgevlm.runtimes.residency.streamed import StreamedBlocks

WARM_UPS, OPENINGS = 2, 3

Progress = Callable[[str], None]


def profile(
    loop: Loop,
    request: ProfileRequest = ProfileRequest(),
    progress: Progress = lambda _: None,
) -> Profile:
    """Profile a loop's bundle with its engine, threads and budget.

    Raises:
        InputError: If the image cannot be read, or the answer does not fit the context.
    """
    return figures.profile_of(measure(loop, request, progress))


def measure(loop: Loop, request: ProfileRequest, progress: Progress) -> Measurements:
    """All measurements of a profile."""
    answers, engine = answers_of(loop.plan.kind), loop.blocks.engine
    asking = answers.Asking(loop, request)
    progress("measure the memory bandwidth")
    threads = engine.threads
    bytes_per_s = bandwidth.read_bytes_per_s(threads or 1)
    session = _session(asking, progress)
    progress("run each operator under the engine's profiler")
    streamed = loop.blocks if isinstance(loop.blocks, StreamedBlocks) else None
    return Measurements(
        bundle=loop.bundle,
        engine=engine.name,
        engine_version=engine.summary(),
        threads=threads,
        question=answers.question(asking, session.answers),
        bandwidth_bytes_per_s=bytes_per_s,
        session=session,
        budget_bytes=streamed.budget_bytes if streamed else None,
        timings=streamed.timings if streamed else None,
        operators=_operators(engine, figures.calls_per_answer(loop.plan, session.answers)),
        compile_ms=dict(engine.compile_ms),
    )


def _session(asking: Any, progress: Progress) -> Session:
    """All answers, then loads and evictions where every block stays in memory."""
    loop, request = asking.loop, asking.request
    before = read_sensors()
    with recording(loop) as recorder, asking.alike():
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
        sustained = _sustained(asking, recorder, request.minutes, progress)
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


def _sustained(
    asking: Any, recorder: Recorder, minutes: float, progress: Progress
) -> tuple[SustainedSample, ...] | None:
    """Answers without a pause until the minutes are over; None for no minutes."""
    if not minutes:
        return None
    samples, start = list[SustainedSample](), time.perf_counter()
    while (seconds := time.perf_counter() - start) < minutes * 60:
        progress(f"answers without a pause: {seconds:.0f} s of {minutes * 60:.0f}")
        timed = asking.answer(recorder)
        ttft_ms, tokens_per_s = asking.sample(timed)
        samples.append(
            SustainedSample(
                seconds=round(timed.end - start, 3),
                answer_ms=round(timed.ms, 3),
                ttft_ms=ttft_ms,
                decode_tokens_per_s=tokens_per_s,
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
