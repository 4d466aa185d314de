"""`edgevlm profile`: what a bundle takes on this machine or another device, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevlm.bundle.writing import check_file, write_text
from edgevlm.cli.shared import options as o
from edgevlm.devices.shared.contract import Job
from edgevlm.profiling.document import PARTS, Profile, Stat, write_profile
from edgevlm.profiling.measure import PROMPT, Request
from edgevlm.profiling.report.chrome_trace import chrome_trace
from edgevlm.profiling.report.page import (
    MEANING,
    megabytes,
    milliseconds,
    missing_by_reason,
    threads_text,
)
from edgevlm.profiling.report.page import report as page_of
from edgevlm.recipe import parse_bytes
from edgevlm.registry import DEVICES

_DEFAULT = Request()


def main(
    bundle: o.BundleArgument,
    device: Annotated[
        str, typer.Option(help="Where: local, ssh:USER@HOST[:PORT], adb[:SERIAL] or ios[:DEVICE].")
    ] = "local",
    memory: Annotated[
        str | None, typer.Option(help="Most memory of the process that measures, such as 300MB.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Engine, see `edgevlm engines`.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; all cores if not given.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed answers.")] = _DEFAULT.runs,
    tokens_generated: Annotated[
        int, typer.Option(min=2, help="Tokens of each answer.")
    ] = _DEFAULT.tokens_generated,
    image: Annotated[Path | None, typer.Option(help="A picture; one of ours if not given.")] = None,
    prompt: Annotated[str, typer.Option(help="The question.")] = PROMPT,
    minutes: Annotated[
        float, typer.Option(min=0, help="Then answers without a pause, for so many minutes.")
    ] = _DEFAULT.minutes,
    max_fallback: Annotated[
        int | None, typer.Option(min=0, help="Fail if more operators are not where they should.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The profile: profile.json.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="A page to look at: r.html.")] = None,
    trace: Annotated[Path | None, typer.Option(help="For Perfetto and Chrome: t.json.")] = None,
    runner: Annotated[
        Path | None, typer.Option(help="Phones: the app or program to put there, which runs it.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="What the device wrote: device.log.")] = None,
    json: o.Json = False,
) -> None:
    """Measure BUNDLE: time and memory of each block, tokens, operators, energy where it can be."""
    name, _, address = device.partition(":")
    transport = DEVICES.load(name)
    request = Request(image, prompt, runs, tokens_generated, minutes)
    budget = None if memory is None else parse_bytes(memory)
    job = Job(Path(bundle), request, engine, threads, budget, runner, log)
    for path in filter(None, (output, report, trace, log)):
        check_file(path)
    with o.progress() as step:
        found = transport.profile(address, job, step)
    if output is not None:
        write_profile(found, output)
    if report is not None:
        write_text(report, page_of(found))
    if trace is not None:
        write_text(trace, chrome_trace(found))
    for path in filter(None, (output, report, trace)):
        o.say(f"wrote {path}")
    o.answer(found, _text(found), json)
    for warning in found.warnings:
        o.say(f"note: {warning}")
    _check_fallback(found, max_fallback)


def _check_fallback(found: Profile, most: int | None) -> None:
    """Exit 1 with one line if too many operators are elsewhere, or nobody counted them."""
    if most is None:
        return
    if found.fallback is None:
        o.say(f"edgevlm: fallback is not known: {found.not_measured['fallback']}")
        raise typer.Exit(1)
    if found.fallback > most:
        where = ", ".join(f"{n} on {name}" for name, n in (found.placement or {}).items())
        o.say(f"edgevlm: fallback is {found.fallback}, --max-fallback allows {most} ({where})")
        raise typer.Exit(1)


def _text(found: Profile) -> str:
    parts = (_card(found), _stages(found), _blocks(found), _whole(found))
    return "\n\n".join("\n".join(map(o.printable, part.split("\n"))) for part in parts)


def _card(found: Profile) -> str:
    card, machine, asked = found.card, found.machine, found.question
    lines = [
        f"{found.bundle}: {found.engine_version}, {threads_text(found)}; {machine.processor},"
        f" {machine.cores} cores, {machine.system}",
        f"weights {megabytes(card.weights_bytes)} MB; KV cache {megabytes(card.kv_bytes)} MB,"
        f" {card.kv_bytes_per_token:,} bytes a token; {asked.visual_tokens} visual +"
        f" {asked.prompt_tokens - asked.visual_tokens} other tokens",
    ]
    floor = f"not known: {found.not_measured.get('card.token_floor_ms', '')}"
    if card.token_floor_ms is not None and card.bandwidth_bytes_per_s is not None:
        speed = f"{card.bandwidth_bytes_per_s / 1e9:.1f} GB/s"
        floor = f"{milliseconds(card.token_floor_ms)} ms to read {megabytes(card.token_bytes)} MB"
        floor += f" at {speed}; {milliseconds(found.token_ms.median)} ms measured"
    return "\n".join([*lines, f"floor of a token: {floor}"])


def _stages(found: Profile) -> str:
    rows = [
        [MEANING[name], milliseconds(s.median), milliseconds(s.p90),
         f"{100 * s.median / found.end_to_end_ms.median:.1f} %"]
        for name in PARTS
        if (s := found.stages[name]).median
    ]  # fmt: skip
    whole = found.end_to_end_ms
    rows.append(["all of it", milliseconds(whole.median), milliseconds(whole.p90), ""])
    return o.table([f"one answer, n {whole.n}", "median ms", "p90 ms", "share"], rows)


def _blocks(found: Profile) -> str:
    rows = [
        [f"{b.name}.{b.function}", f"{b.calls}", _of(b.run_ms), _p90(b.run_ms),
         _of(b.answer_ms), _of(b.load_ms), _of(b.evict_ms),
         "-" if b.resident_bytes is None else megabytes(b.resident_bytes)]
        for b in found.blocks
    ]  # fmt: skip
    head = ["function", "calls", "run ms", "p90", "an answer", "load ms", "evict ms", "MB"]
    return o.table(head, rows)


def _whole(found: Profile) -> str:
    budget = "" if found.budget_bytes is None else f" of {megabytes(found.budget_bytes)} MB"
    private = found.peak_footprint_bytes
    placed = ", ".join(f"{n:,} on {name}" for name, n in (found.placement or {}).items())
    lines = [
        f"first token {milliseconds(found.ttft_ms)} ms, then {found.decode_tokens_per_s:,.1f}"
        f" tokens/s",
        f"peak {megabytes(found.peak_rss_bytes)} MB{budget} resident"
        + ("" if private is None else f", {megabytes(private)} MB private"),
        f"operators: {placed}; fallback {found.fallback}" if placed else "operators: not known",
    ]
    if found.energy_joules is not None:
        lines.append(f"energy {found.energy_joules:.3f} J an answer")
    if found.sustained:
        first, last = found.sustained[0], found.sustained[-1]
        lines.append(
            f"without a pause: {len(found.sustained)} answers in {last.seconds:.0f} s,"
            f" {first.decode_tokens_per_s:,.1f} tokens/s at first,"
            f" {last.decode_tokens_per_s:,.1f} at last"
        )
    reasons = missing_by_reason(found)
    lines += [f"not measured: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return "\n".join(lines)


def _of(found: Stat | None) -> str:
    return "-" if found is None else milliseconds(found.median)


def _p90(found: Stat | None) -> str:
    return "-" if found is None else milliseconds(found.p90)
