"""Timed calls as events over time, and as shares of an answer's time. Of any kind of bundle."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.profiling.measurements import TimedAnswer
from edgevlm.profiling.recording import TimedCall
from edgevlm.profiling.sections import Event, MemorySample, Timeline
from edgevlm.profiling.stages import time_shares


def timeline(
    calls: Sequence[TimedCall],
    shares: Sequence[str],
    start: float,
    end: float,
    memory: Sequence[tuple[float, int]],
) -> Timeline:
    """Calls as events; what began before the start is cut there.

    Args:
        calls: Loads, runs and evictions; steps are left out.
        shares: The time share of each call, or its stage.
        start: In seconds, as the calls.
        end: The same.
        memory: Time and resident bytes.
    """
    events = []
    for call, share in sorted(zip(calls, shares, strict=True), key=lambda pair: pair[0].start):
        if call.kind == "step" or call.end <= start:
            continue
        begin = max(call.start, start)
        events.append(
            Event(
                call.kind, call.block, call.function, share,
                round((begin - start) * 1e3, 4), round((call.end - begin) * 1e3, 4),
            )
        )  # fmt: skip
    samples = (MemorySample(round(max(0.0, at - start) * 1e3, 4), size) for at, size in memory)
    return Timeline(round((end - start) * 1e3, 4), tuple(events), tuple(samples))


def answer_shares(kind: str, answer: TimedAnswer, shares: Sequence[str]) -> dict[str, float]:
    """Milliseconds of one answer by time share; they add up to the answer.

    Args:
        kind: Of the bundle.
        answer: The answer.
        shares: The time share of each of its calls.
    """
    ms = {share.name: 0.0 for share in time_shares(kind)}
    steps = 0.0
    for call, share in zip(answer.calls, shares, strict=True):
        if call.kind == "run":
            ms[share] += call.ms
        elif call.kind == "step":
            steps += call.ms
        elif call.kind == "evict":
            ms["evict"] += call.ms
    ms["wait"] = max(0.0, steps - sum(ms.values()))
    waited = [(c, s) for c, s in zip(answer.calls, shares, strict=True) if c.kind == "step"]
    first, share = min(waited, key=lambda pair: pair[0].start)
    if share == "vision":  # all before it turns the image into pixels
        ms["preprocess"] = (first.start - answer.start) * 1e3
    ms["host"] = max(0.0, answer.ms - steps - ms.get("preprocess", 0.0))
    return ms
