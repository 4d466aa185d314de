"""The profile of a bundle, from its measurements. Nothing runs here."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevlm.bundle.measures import OperatorReport, Stat, stat, stat_of
from edgevlm.bundle.plan import Plan
from edgevlm.profiling import reasons
from edgevlm.profiling.answers import answers_of
from edgevlm.profiling.document import SCHEMA_VERSION, Profile
from edgevlm.profiling.machine import sensors
from edgevlm.profiling.machine.identity import machine
from edgevlm.profiling.measurements import Measurements, Session, TimedAnswer
from edgevlm.profiling.recording import TimedCall
from edgevlm.profiling.sections import BlockProfile, Card, Conditions, Timeline
from edgevlm.profiling.stages import time_shares
from edgevlm.profiling.timeline import answer_shares, timeline
from edgevlm.runtimes.engine import Key
from edgevlm.version import VERSION


def profile_of(measured: Measurements) -> Profile:
    """The profile."""
    plan, session, report = measured.bundle.plan, measured.session, measured.operators
    answers, operators = session.answers, report if isinstance(report, OperatorReport) else None
    found, here, blocks = (
        answers_of(plan.kind).sections(measured),
        machine(),
        block_profiles(measured),
    )
    conditions, energy = _conditions(session), _joules_per_answer(session)
    end_to_end = stat_of([answer.ms for answer in answers])
    return Profile(
        schema_version=SCHEMA_VERSION,
        edgevlm_version=VERSION,
        kind=plan.kind,
        device="local",
        machine=here,
        engine=measured.engine,
        engine_version=measured.engine_version,
        threads=measured.threads,
        recipe=plan.recipe,
        bundle=Path(os.path.abspath(measured.bundle.path)).name,
        card=_card(measured),
        sites=plan.sites,
        warm_ups=len(session.warm_ups),
        runs=len(answers),
        blocks=blocks,
        stages=_stages(plan, answers),
        end_to_end_ms=end_to_end,
        text=found.text,
        embedding=found.embedding,
        video=found.video,
        ttft_ms=found.ttft_ms,
        decode_tokens_per_s=found.decode_tokens_per_s,
        peak_rss_bytes=session.peak_rss_bytes,
        peak_footprint_bytes=session.peak_footprint_bytes,
        budget_bytes=measured.budget_bytes,
        energy_joules=energy,
        temperature_c=conditions.temperature_after_c,
        conditions=conditions,
        operators=operators.operators if operators else None,
        placement=operators.placement if operators else None,
        fallback=operators.fallback if operators else None,
        opening=_opening_timeline(plan, session),
        answer=_median_timeline(plan, answers),
        sustained=session.sustained,
        warnings=reasons.warnings(measured, here, end_to_end, conditions),
        not_measured=reasons.not_measured(measured, here, blocks, found, conditions, energy),
    )


def calls_per_answer(plan: Plan[Any], answers: Sequence[TimedAnswer]) -> dict[Key, int]:
    """How often one answer runs each function, in the order of the bundle."""
    counts = Counter((c.block, c.function) for c in answers[0].calls if c.kind == "run")
    return {(b.name, f.name): counts[b.name, f.name] for b in plan.blocks for f in b.functions}


def block_profiles(measured: Measurements) -> tuple[BlockProfile, ...]:
    """Each function of each block, in the order of the bundle."""
    plan, session = measured.bundle.plan, measured.session
    runs = [call for answer in session.answers for call in answer.calls]
    loads = [call for answer in session.warm_ups for call in answer.calls] + runs
    for opening in session.openings:
        loads += [*opening.evictions, *opening.calls]
    counts = calls_per_answer(plan, session.answers)
    profiles = []
    for block in plan.blocks:
        compiled = measured.compile_ms.get(block.name)
        for function in block.functions:
            key = (block.name, function.name)
            per_answer = [_run_ms(answer, key) for answer in session.answers]
            profiles.append(
                BlockProfile(
                    name=block.name,
                    function=function.name,
                    stage=block.stage,
                    weights_bytes=block.weights_bytes,
                    flops=function.flops,
                    calls=counts[key],
                    load_ms=_times(loads, "load", key),
                    compile_ms=None if compiled is None else stat([compiled]),
                    run_ms=_times(runs, "run", key),
                    answer_ms=stat(per_answer) if counts[key] else None,
                    evict_ms=_times(loads, "evict", key),
                    resident_bytes=_resident_bytes(measured, key),
                )
            )
    return tuple(profiles)


def _times(calls: Sequence[TimedCall], kind: str, key: Key) -> Stat | None:
    return stat([c.ms for c in calls if c.kind == kind and (c.block, c.function) == key])


def _run_ms(answer: TimedAnswer, key: Key) -> float:
    """Milliseconds of all runs of a function in one answer."""
    return sum(c.ms for c in answer.calls if (c.kind, c.block, c.function) == ("run", *key))


def _resident_bytes(measured: Measurements, key: Key) -> int | None:
    if measured.session.openings:
        return int(statistics.median(o.resident[key] for o in measured.session.openings))
    return None if measured.timings is None else measured.timings.streamed(key).bytes


def _stages(plan: Plan[Any], answers: Sequence[TimedAnswer]) -> dict[str, Stat]:
    shares = answers_of(plan.kind).call_shares
    splits = [answer_shares(plan.kind, a, shares(plan, a.calls)) for a in answers]
    names = [share.name for share in time_shares(plan.kind)]
    return {name: stat_of([split[name] for split in splits]) for name in names}


def _median_timeline(plan: Plan[Any], answers: Sequence[TimedAnswer]) -> Timeline:
    """The timed answer nearest to the median."""
    middle = sorted(answers, key=lambda a: a.ms)[(len(answers) - 1) // 2]
    shares = answers_of(plan.kind).call_shares(plan, middle.calls)
    return timeline(middle.calls, shares, middle.start, middle.end, middle.memory)


def _opening_timeline(plan: Plan[Any], session: Session) -> Timeline | None:
    """The last opening."""
    if not session.openings:
        return None
    last = session.openings[-1]
    shares = answers_of(plan.kind).call_shares(plan, last.calls, prefilled=True)
    return timeline(last.calls, shares, last.start, last.end, last.memory)


def _card(measured: Measurements) -> Card:
    bandwidth = measured.bandwidth_bytes_per_s
    return Card(
        weights_bytes=measured.bundle.plan.weights_bytes,
        bandwidth_bytes_per_s=None if bandwidth is None else float(round(bandwidth)),
    )


def _conditions(session: Session) -> Conditions:
    before, after = session.sensors[0], session.sensors[3]
    return Conditions(
        before.temperature_c, after.temperature_c, before.frequency_mhz, after.frequency_mhz,
        sensors.throttled(before, after), before.load,
    )  # fmt: skip


def _joules_per_answer(session: Session) -> float | None:
    started, ended = session.sensors[1:3]
    energy = sensors.joules(started, ended)
    energy = session.rail_joules if energy is None else energy
    return None if energy is None else round(energy / len(session.answers), 4)
