"""Tables of `peers`: speed of each work, agreement with PyTorch, cold starts, and the goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from peer._given import PROMPTS
from peer.edgevlm import METHODS as FEWER

if TYPE_CHECKING:
    from _floors import Floors
    from peers import Measured

OURS, REFERENCE = "edgevlm", "pytorch"
WORKS = {
    "ttft": "Time to first token, one tile and a prompt of 96 rows",
    "vision": "Vision, one tile",
    **{f"prefill {rows}": f"Prefill of {rows} rows, with scores" for rows in PROMPTS},
    "decode": f"Decode, a token after {max(PROMPTS)} rows",
}
PRECISIONS = ("fp32", "int8", "int4")
# What counts as the same model: the relative difference of float32, the psnr of rounded forms.
# Scores of another model have about 8 dB.
RELATIVE, PSNR_DB = 1e-3, {"int8": 25.0, "int4": 12.0}


def speed_tables(measured: Sequence[Measured], floors: Floors, where: Mapping[str, Any]) -> None:
    """A table for each work."""
    for work, title in WORKS.items():
        print(f"\n{title}\n")
        print("| | precision | n | median ms | p90 ms | theirs / ours | times its floor | agrees |")
        print("|---|---|---:|---:|---:|---:|---:|---|")
        for item in _ordered(measured):
            times = item.times.get(work)
            if not times:
                continue
            precision, median = item.form.precision, float(np.median(times))
            ratio = against_ours(item, measured, work)
            shown = "" if ratio is None else f"{ratio:.2f}"
            over = median / floors.ms(work, precision)
            print(
                f"| {item.form.name} | {precision} | {len(times)} | {median:.1f} |"
                f" {np.percentile(times, 90):.1f} | {shown} | {over:.2f} | {agrees(item, work)} |"
            )
        at = ", ".join(f"{p} {floors.ms(work, p):.1f} ms" for p in PRECISIONS)
        print(f"\nfloors: {at}")
    rates = ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in floors.rates.items())
    print(f"\nbest rates: {rates}, memory {floors.bytes_per_s / 1e9:.1f} GB/s")
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items() if v)
    print(
        f"{where['date']}, {where['processor']}, {where['threads']} threads, {versions}; load"
        f" average {where['load_average']} at the start"
    )


def parity_table(measured: Sequence[Measured]) -> None:
    """What each form is, and how far its outputs are from PyTorch's."""
    print("\nAgreement with PyTorch in float32\n")
    print("| | what it is | features | scores | best token |\n|---|---|---|---|---:|")
    for item in _ordered([m for m in measured if m.form.peer != REFERENCE]):
        scores = [v for name, v in item.parity.items() if name != "vision"]
        rows = sum(v["rows"] for v in scores)
        equal = sum(v["equal_best"] for v in scores) / rows if rows else float("nan")
        seen = [item.parity[name] for name in ("vision",) if name in item.parity]
        print(
            f"| {item.form.name} | {item.form.says} | {_apart(seen)} | {_apart(scores)} |"
            f" {equal:.0%} |"
        )
    print("\nlargest relative difference, smallest psnr; equal best tokens of all rows of scores")


def cold_table(measured: Sequence[Measured]) -> None:
    """From the start of a process to the first token, and its memory until then."""
    print("\nCold start: a fresh process to its first token, files in the page cache\n")
    print("| | | n | median s | p90 s | peak resident MB | peak private MB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for item in _ordered(measured):
        timed = [s.ms / 1e3 for s in item.starts if s.private_bytes is None]
        private = [s.private_bytes for s in item.starts if s.private_bytes is not None]
        if not timed or not private:
            continue
        resident = max(s.resident_bytes for s in item.starts) / 1e6
        print(
            f"| {item.form.name} | {'a tile and text' if item.sees else 'text'} | {len(timed)} |"
            f" {np.median(timed):.2f} | {np.percentile(timed, 90):.2f} | {resident:.0f} |"
            f" {max(private) / 1e6:.0f} |"
        )


def verdicts(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Each goal against the peer that is hardest on it; printed, and returned."""
    goals: dict[str, dict[str, Any]] = {}
    ours = _fastest(measured, "int8", "vision")
    peers = [m for m in measured if not _ours(m)]
    if ours is not None:
        found: dict[str, float | None]
        found = {m.form.name: _ratio(m, ours, "vision") for m in peers if "vision" in m.times}
        goals["vision, int8 against every peer"] = _worst(found, 1.5)
    for work in ("ttft", "decode"):
        for precision in PRECISIONS:
            same = [m for m in peers if m.form.precision == precision and work in m.times]
            found = {m.form.name: against_ours(m, measured, work) for m in same}
            goals[f"{work}, {precision}"] = _worst(found, 1.0)
    for kind, read in (("resident", _resident), ("private", _private)):
        for precision in PRECISIONS:
            mine = [m for m in measured if _ours(m) and m.form.precision == precision]
            whole = [m for m in peers if m.form.precision == precision and m.sees and m.starts]
            if mine and mine[0].starts:
                found = {m.form.name: read(m) / max(1, read(mine[0])) for m in whole}
                goals[f"{kind} memory, {precision}"] = _worst(found, 1.0)
    print("\nGoals (theirs / ours, against the peer that is hardest on it)\n")
    print("| | goal | measured | peer | |\n|---|---:|---:|---|---|")
    for name, goal in goals.items():
        if goal["peer"]:
            verdict = "reached" if goal["ok"] else "missed"
            print(
                f"| {name} | {goal['goal']} | {goal['measured']:.2f} | {goal['peer']} | {verdict} |"
            )
    return goals


def against_ours(item: Measured, measured: Sequence[Measured], work: str) -> float | None:
    """Median over rounds of theirs / edgevlm's fastest of the same precision and all patches."""
    ours = _fastest(measured, item.form.precision, work)
    return None if ours is None or _ours(item) else _ratio(item, ours, work)


def agrees(item: Measured, work: str) -> str:
    """Whether a speed counts: what came out of this work is what PyTorch gives."""
    name = work.replace(" ", "-")
    names = ("vision", f"prefill-{PROMPTS[0]}") if work == "ttft" else (name,)
    if item.form.peer == REFERENCE:
        return "reference"
    found = [item.parity[n] for n in names if n in item.parity]
    if not found:
        return "not compared"
    if item.form.precision == "fp32":
        worst = max(v["relative"] for v in found)
        return f"{worst:.0e}" if worst < RELATIVE else f"**no**, {worst:.0e}"
    least = min(v["psnr_db"] for v in found)
    if item.form.variant in FEWER and work in ("vision", "ttft"):
        return f"fewer patches, {least:.0f} dB"
    return f"{least:.0f} dB" if least >= PSNR_DB[item.form.precision] else f"**no**, {least:.0f} dB"


def _fastest(measured: Sequence[Measured], precision: str, work: str) -> Measured | None:
    same = [m for m in measured if _ours(m) and m.form.precision == precision and work in m.times]
    same = [m for m in same if m.form.variant not in FEWER]
    return min(same, key=lambda m: float(np.median(m.times[work])), default=None)


def _ours(item: Measured) -> bool:
    return item.form.peer == OURS


def _ordered(measured: Sequence[Measured]) -> list[Measured]:
    return sorted(measured, key=lambda m: (PRECISIONS.index(m.form.precision), not _ours(m)))


def _ratio(theirs: Measured, ours: Measured, work: str) -> float:
    return float(np.median(np.asarray(theirs.times[work]) / np.asarray(ours.times[work])))


def _worst(found: Mapping[str, float | None], goal: float) -> dict[str, Any]:
    ratios = {name: ratio for name, ratio in found.items() if ratio is not None}
    if not ratios:
        return {"goal": goal, "measured": None, "peer": None, "ok": None}
    peer = min(ratios, key=lambda name: ratios[name])
    return {"goal": goal, "measured": ratios[peer], "peer": peer, "ok": ratios[peer] >= goal}


def _resident(item: Measured) -> int:
    return max(s.resident_bytes for s in item.starts)


def _private(item: Measured) -> int:
    return max(s.private_bytes or 0 for s in item.starts)


def _apart(found: Sequence[Mapping[str, float]]) -> str:
    if not found:
        return ""
    worst, least = max(v["relative"] for v in found), min(v["psnr_db"] for v in found)
    return f"{worst:.0e}, {least:.0f} dB"
