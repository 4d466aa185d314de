"""The figures of a profile, from what `edgevlm.profiling.measure` noted. Nothing runs here."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import Plan
from edgevlm.devices.shared.fit import token_bytes
from edgevlm.libraries import processor_name
from edgevlm.profiling import sensors
from edgevlm.profiling.document import (
    PARTS,
    SCHEMA_VERSION,
    BlockProfile,
    Card,
    Conditions,
    Event,
    Machine,
    MemorySample,
    Placed,
    Profile,
    Question,
    Stat,
    SustainedSample,
    Timeline,
    stat,
)
from edgevlm.profiling.recording import Mark
from edgevlm.profiling.sensors import Reading
from edgevlm.runtimes.engine import Key
from edgevlm.runtimes.loops.text import Answer
from edgevlm.runtimes.residency.timings import Timings
from edgevlm.version import VERSION

STAGE_OF = {"encode": "vision", "reduce": "reduce", "prefill": "prefill", "logits": "head"}
# Processes that wanted a core before; beyond this share of the cores the figures are of both.
BUSY = 0.5
# A 90th percentile so much above the median says that something else ran too.
SPREAD = 1.5


@dataclass(frozen=True)
class Answered:
    """One answer with what its recorder noted; times in seconds of one clock."""

    answer: Answer
    start: float
    end: float
    marks: tuple[Mark, ...]
    memory: tuple[tuple[float, int], ...]

    @property
    def ms(self) -> float:
        """From the decoded picture to the last token."""
        return (self.end - self.start) * 1e3


@dataclass(frozen=True)
class Opened:
    """All functions evicted, then loaded and run once each; bytes that each took."""

    start: float
    end: float
    evictions: tuple[Mark, ...]
    marks: tuple[Mark, ...]
    memory: tuple[tuple[float, int], ...]
    resident: Mapping[Key, int]


@dataclass(frozen=True)
class Measured:
    """All that was noted.

    `openings` is empty and `timings` is there where blocks come and go within a budget. `sensors`
    were read before all, around the timed answers, and after all. `placed` may be a reason instead.
    """

    bundle: Bundle
    engine: str
    engine_version: str
    threads: int | None
    question: Question
    bandwidth_bytes_per_s: float | None
    warm_ups: tuple[Answered, ...]
    answers: tuple[Answered, ...]
    sustained: tuple[SustainedSample, ...] | None
    openings: tuple[Opened, ...]
    budget_bytes: int | None
    timings: Timings | None
    peak_rss_bytes: int
    peak_footprint_bytes: int | None
    sensors: tuple[Reading, Reading, Reading, Reading]
    rail_joules: float | None  # of the timed answers
    placed: Placed | str
    compile_ms: Mapping[str, float | None]  # by block


def figures(made: Measured) -> Profile:
    """The profile."""
    plan, answers = made.bundle.plan, made.answers
    before, started, ended, after = made.sensors
    card = _card(plan, made.bandwidth_bytes_per_s)
    blocks = _blocks(plan, made)
    energy = sensors.joules(started, ended)
    energy = made.rail_joules if energy is None else energy
    placed = made.placed if isinstance(made.placed, Placed) else None
    middle = sorted(answers, key=lambda a: a.ms)[(len(answers) - 1) // 2]
    opening = None
    if made.openings:
        last = made.openings[-1]
        opening = timeline(plan, last.start, last.end, last.marks, last.memory, first=True)
    conditions = Conditions(
        before.temperature_c, after.temperature_c, before.frequency_mhz, after.frequency_mhz,
        sensors.throttled(before, after), before.load,
    )  # fmt: skip
    whole = _known([a.ms for a in answers])
    nothing = _reasons(made, card, blocks, conditions, energy)
    return Profile(
        schema_version=SCHEMA_VERSION,
        edgevlm_version=VERSION,
        device="local",
        machine=machine(),
        engine=made.engine,
        engine_version=made.engine_version,
        threads=made.threads,
        recipe=plan.recipe,
        bundle=Path(os.path.abspath(made.bundle.path)).name,
        card=card,
        question=made.question,
        sites=plan.sites,
        warm_ups=len(made.warm_ups),
        runs=len(answers),
        blocks=blocks,
        stages=_stages(answers),
        end_to_end_ms=whole,
        token_ms=_known([ms for a in answers for ms in _token_ms(plan, a)]),
        ttft_ms=round(statistics.median(a.answer.ttft_ms for a in answers), 4),
        decode_tokens_per_s=round(
            statistics.median(a.answer.decode_tokens_per_s or 0.0 for a in answers), 4
        ),
        peak_rss_bytes=made.peak_rss_bytes,
        peak_footprint_bytes=made.peak_footprint_bytes,
        budget_bytes=made.budget_bytes,
        energy_joules=None if energy is None else round(energy / len(answers), 4),
        temperature_c=after.temperature_c,
        conditions=conditions,
        operators=placed.operators if placed else None,
        placement=placed.placement if placed else None,
        fallback=placed.fallback if placed else None,
        opening=opening,
        answer=timeline(plan, middle.start, middle.end, middle.marks, middle.memory),
        sustained=made.sustained,
        warnings=tuple(_warnings(made, whole, conditions)),
        not_measured=nothing,
    )


def calls(plan: Plan[Any], answers: Sequence[Answered]) -> dict[Key, int]:
    """How often one answer runs each function, in the order of the bundle."""
    counts = Counter((m.block, m.function) for m in answers[0].marks if m.kind == "run")
    return {(b.name, f.name): counts[b.name, f.name] for b in plan.blocks for f in b.functions}


def timeline(
    plan: Plan[Any],
    start: float,
    end: float,
    marks: Sequence[Mark],
    memory: Sequence[tuple[float, int]],
    first: bool = False,
) -> Timeline:
    """Marks as events; what began before the start is cut there.

    `first` is whether the first token was there before: single rows are then decode's.
    """
    events = []
    for mark in sorted(marks, key=lambda m: m.start):
        first = first or (mark.kind == "run" and mark.function == "logits")
        if mark.kind == "step" or mark.end <= start:
            continue
        part = _part(mark.function, first or mark.kind != "run") or plan.block(mark.block).stage
        begin = max(mark.start, start)
        events.append(
            Event(
                mark.kind, mark.block, mark.function, part,
                round((begin - start) * 1e3, 4), round((mark.end - begin) * 1e3, 4),
            )
        )  # fmt: skip
    samples = (MemorySample(round(max(0.0, at - start) * 1e3, 4), size) for at, size in memory)
    return Timeline(round((end - start) * 1e3, 4), tuple(events), tuple(samples))


def _part(function: str, after_first_logits: bool) -> str:
    """The stage that a run serves: single rows of a prompt are prefill's too."""
    if function == "decode":
        return "decode" if after_first_logits else "prefill"
    return STAGE_OF.get(function, "")


def _split(answer: Answered) -> dict[str, float]:
    """Milliseconds of one answer by what they went into."""
    found = dict.fromkeys(PARTS, 0.0)
    marks, first, steps = sorted(answer.marks, key=lambda m: m.start), False, 0.0
    for mark in marks:
        took = (mark.end - mark.start) * 1e3
        if mark.kind == "run":
            first = first or mark.function == "logits"
            found[_part(mark.function, first)] += took
        elif mark.kind == "step":
            steps += took
        elif mark.kind == "evict":
            found["evict"] += took
    found["wait"] = max(0.0, steps - sum(found.values()))
    begin = next(mark for mark in marks if mark.kind == "step")
    if begin.function == "encode":
        found["picture"] = (begin.start - answer.start) * 1e3
    found["host"] = max(0.0, answer.ms - steps - found["picture"])
    return found


def _stages(answers: Sequence[Answered]) -> dict[str, Stat]:
    splits = [_split(answer) for answer in answers]
    return {part: _known([split[part] for split in splits]) for part in PARTS}


def _token_ms(plan: Plan[Any], answer: Answered) -> list[float]:
    """From the end of the head to its next end: a token of which all is counted."""
    last = plan.stage("head")[-1].name
    ends = [m.end for m in answer.marks if (m.kind, m.block) == ("step", last)]
    return [(b - a) * 1e3 for a, b in pairwise(ends)]


def _blocks(plan: Plan[Any], made: Measured) -> tuple[BlockProfile, ...]:
    marks = [mark for answer in made.answers for mark in answer.marks]
    loads = [mark for answer in made.warm_ups for mark in answer.marks] + marks
    for opening in made.openings:
        loads += [*opening.evictions, *opening.marks]
    counts, found = calls(plan, made.answers), []

    def times(among: Sequence[Mark], kind: str, key: Key) -> Stat | None:
        chosen = [m for m in among if m.kind == kind and (m.block, m.function) == key]
        return stat([(m.end - m.start) * 1e3 for m in chosen])

    for block in plan.blocks:
        compiled = made.compile_ms.get(block.name)
        for function in block.functions:
            key = (block.name, function.name)
            resident = None
            if made.openings:
                resident = int(statistics.median(o.resident[key] for o in made.openings))
            elif made.timings is not None:
                resident = made.timings.streamed(key).bytes
            found.append(
                BlockProfile(
                    name=block.name,
                    function=function.name,
                    stage=block.stage,
                    weights_bytes=block.weights_bytes,
                    flops=function.flops,
                    calls=counts[key],
                    load_ms=times(loads, "load", key),
                    compile_ms=None if compiled is None else stat([compiled]),
                    run_ms=times(marks, "run", key),
                    answer_ms=stat(_per_answer(made.answers, key)) if counts[key] else None,
                    evict_ms=times(loads, "evict", key),
                    resident_bytes=resident,
                )
            )
    return tuple(found)


def _per_answer(answers: Sequence[Answered], key: Key) -> list[float]:
    """Milliseconds of all runs of a function, for each answer."""
    return [
        sum(
            (m.end - m.start) * 1e3
            for m in a.marks
            if (m.kind, m.block, m.function) == ("run", *key)
        )
        for a in answers
    ]


def _card(plan: Plan[Any], speed: float | None) -> Card:
    kv, read = plan.host.kv, token_bytes(plan)
    return Card(
        weights_bytes=plan.weights_bytes,
        kv_bytes=kv.bytes,
        kv_bytes_per_token=kv.bytes // kv.tokens,
        token_bytes=read,
        bandwidth_bytes_per_s=None if speed is None else float(round(speed)),
        token_floor_ms=None if speed is None else round(read / speed * 1e3, 4),
    )


def machine() -> Machine:
    """The machine that this process runs on."""
    try:
        memory: int | None = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        memory = None
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    # What follows the second number names a build, of which a reader learns nothing.
    release = ".".join(platform.release().split(".")[:2])
    system = f"{platform.system()} {release}"
    return Machine(system, platform.machine(), processor_name(), cores, memory)


def _reasons(
    made: Measured,
    card: Card,
    blocks: Sequence[BlockProfile],
    conditions: Conditions,
    energy: float | None,
) -> dict[str, str]:
    """Why each null is one."""
    why = made.sensors[3].not_measured
    hot, clock = why.get("temperature", ""), why.get("frequency", "")
    unplaced = made.placed if isinstance(made.placed, str) else ""
    answers = made.sustained or ()
    nulls: list[tuple[str, bool, str]] = [
        ("machine.memory_bytes", machine().memory_bytes is None, "the system does not say"),
        ("threads", made.threads is None, "the engine does not say"),
        ("card.bandwidth_bytes_per_s", card.bandwidth_bytes_per_s is None, "reading it failed"),
        ("card.token_floor_ms", card.token_floor_ms is None, "the bandwidth is not known"),
        ("blocks.compile_ms", any(b.compile_ms is None for b in blocks),
         "nothing was compiled, or by an edgevlm that did not note how long it took"),
        ("blocks.load_ms", any(b.load_ms is None for b in blocks),
         "a function that was in memory already is not loaded"),
        *((f"blocks.{name}", any(b.run_ms is None for b in blocks),
           "an answer to this question does not call every function")
          for name in ("run_ms", "answer_ms")),
        ("blocks.evict_ms", any(b.evict_ms is None for b in blocks),
         "a function that stays in memory is not evicted"),
        ("blocks.resident_bytes", any(b.resident_bytes is None for b in blocks),
         "the engine was not asked"),
        ("peak_footprint_bytes", made.peak_footprint_bytes is None,
         "the system does not tell private memory from the rest"),
        ("budget_bytes", made.budget_bytes is None, "no --memory was given"),
        ("energy_joules", energy is None, made.sensors[2].not_measured.get("energy", "")),
        ("temperature_c", made.sensors[3].temperature_c is None, hot),
        ("conditions.temperature_before_c", conditions.temperature_before_c is None, hot),
        ("conditions.temperature_after_c", conditions.temperature_after_c is None, hot),
        ("conditions.frequency_before_mhz", conditions.frequency_before_mhz is None, clock),
        ("conditions.frequency_after_mhz", conditions.frequency_after_mhz is None, clock),
        ("conditions.throttled", conditions.throttled is None, why.get("throttled", clock)),
        ("conditions.load_before", conditions.load_before is None, why.get("load", "")),
        ("opening", not made.openings, "blocks are loaded within the answers"),
        ("sustained", made.sustained is None, "no --minutes were given"),
        ("sustained.temperature_c", any(s.temperature_c is None for s in answers), hot),
        *((name, bool(unplaced), unplaced) for name in ("operators", "placement", "fallback")),
    ]  # fmt: skip
    found = {name: reason or "it could not be read" for name, missing, reason in nulls if missing}
    return found | (made.placed.not_measured if isinstance(made.placed, Placed) else {})


def _warnings(made: Measured, whole: Stat, conditions: Conditions) -> list[str]:
    found, cores = [], machine().cores
    if conditions.throttled:
        found.append("the processor was slowed down for its temperature while this was measured")
    if (load := conditions.load_before) is not None and load > BUSY * cores:
        found.append(
            f"{load:g} processes wanted the {cores} cores in the minute before: others slow it down"
        )
    if whole.p90 > SPREAD * whole.median:
        found.append(
            f"one answer in ten took {whole.p90 / whole.median:.1f} times the median or more"
        )
    if made.budget_bytes is not None and made.peak_rss_bytes > made.budget_bytes:
        over = (made.peak_rss_bytes - made.budget_bytes) / 1e6
        found.append(f"the process took {over:.1f} MB more than its budget")
    return found


def _known(values: Sequence[float]) -> Stat:
    found = stat(values)
    assert found is not None
    return found
