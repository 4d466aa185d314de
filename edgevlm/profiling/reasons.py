"""Why values of a profile are null, and what a reader has to know before believing the others."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.bundle.measures import OperatorReport, Stat
from edgevlm.profiling.answers import answers_of
from edgevlm.profiling.measurements import Measurements, Null, Sections
from edgevlm.profiling.sections import BlockProfile, Conditions, Machine

# Processes that wanted a core before; above this share of the cores they slow the measurement down.
BUSY = 0.5
# A 90th percentile so much above the median means that something else ran too.
SPREAD = 1.5


def not_measured(
    measured: Measurements,
    machine: Machine,
    blocks: Sequence[BlockProfile],
    found: Sections,
    conditions: Conditions,
    energy: float | None,
) -> dict[str, str]:
    """The reason of each null, by its path."""
    session, report = measured.session, measured.operators
    unknown = report if isinstance(report, str) else ""
    nulls: list[Null] = [
        ("machine.memory_bytes", machine.memory_bytes is None, "the system does not say"),
        ("threads", measured.threads is None, "the engine does not say"),
        ("card.bandwidth_bytes_per_s", measured.bandwidth_bytes_per_s is None,
         "reading memory failed"),
        *answers_of(measured.bundle.plan.kind).nulls(found, bool(session.sustained)),
        ("peak_footprint_bytes", session.peak_footprint_bytes is None,
         "the system does not report private memory"),
        ("budget_bytes", measured.budget_bytes is None, "no --memory was given"),
        ("opening", not session.openings, "blocks are loaded within the answers"),
        ("sustained", session.sustained is None, "no --minutes were given"),
        *((name, bool(unknown), unknown) for name in ("operators", "placement", "fallback")),
        *_block_nulls(blocks, answers_of(measured.bundle.plan.kind).UNCALLED),
        *_sensor_nulls(measured, conditions, energy),
    ]  # fmt: skip
    reasons = {name: reason or "it could not be read" for name, null, reason in nulls if null}
    return reasons | (report.not_measured if isinstance(report, OperatorReport) else {})


def warnings(
    measured: Measurements, machine: Machine, end_to_end: Stat, conditions: Conditions
) -> tuple[str, ...]:
    """Heat, other work, a wide spread, a budget that was exceeded."""
    notes, cores = [], machine.cores
    if conditions.throttled:
        notes.append("the processor was slowed down because of its temperature")
    if (load := conditions.load_before) is not None and load > BUSY * cores:
        notes.append(
            f"other work slows this down: the load average of the minute before was {load:g} on"
            f" {cores} cores"
        )
    if end_to_end.p90 > SPREAD * end_to_end.median:
        notes.append(
            f"one answer in ten took {end_to_end.p90 / end_to_end.median:.1f} times the median or"
            " more"
        )
    peak, budget = measured.session.peak_rss_bytes, measured.budget_bytes
    if budget is not None and peak > budget:
        notes.append(f"the process took {(peak - budget) / 1e6:.1f} MB more than its budget")
    return tuple(notes)


def _block_nulls(blocks: Sequence[BlockProfile], uncalled: str) -> list[Null]:
    reasons = {
        "compile_ms": "nothing was compiled, or by an edgevlm that did not record the time",
        "load_ms": "a function that is in memory already is not loaded",
        "run_ms": uncalled,
        "answer_ms": uncalled,
        "evict_ms": "a function that stays in memory is not evicted",
        "resident_bytes": "the engine was not asked",
    }
    return [
        (f"blocks.{name}", any(getattr(block, name) is None for block in blocks), reason)
        for name, reason in reasons.items()
    ]


def _sensor_nulls(
    measured: Measurements, conditions: Conditions, energy: float | None
) -> list[Null]:
    ended, after = measured.session.sensors[2:]
    reasons = after.not_measured
    hot, clock = reasons.get("temperature", ""), reasons.get("frequency", "")
    samples = measured.session.sustained or ()
    return [
        ("energy_joules", energy is None, ended.not_measured.get("energy", "")),
        ("temperature_c", after.temperature_c is None, hot),
        ("conditions.temperature_before_c", conditions.temperature_before_c is None, hot),
        ("conditions.temperature_after_c", conditions.temperature_after_c is None, hot),
        ("conditions.frequency_before_mhz", conditions.frequency_before_mhz is None, clock),
        ("conditions.frequency_after_mhz", conditions.frequency_after_mhz is None, clock),
        ("conditions.throttled", conditions.throttled is None, reasons.get("throttled", clock)),
        ("conditions.load_before", conditions.load_before is None, reasons.get("load", "")),
        ("sustained.temperature_c", any(s.temperature_c is None for s in samples), hot),
    ]
