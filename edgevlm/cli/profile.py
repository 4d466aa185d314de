"""`edgevlm profile`: what a bundle takes on this machine or another device, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevlm.bundle.writing import check_file, write_text
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, printable, progress, say, table
from edgevlm.devices.shared.contract import Job
from edgevlm.profiling.document import Profile, write_profile
from edgevlm.profiling.measurements import ProfileRequest
from edgevlm.profiling.report.chrome_trace import chrome_trace
from edgevlm.profiling.report.page import report as page_of
from edgevlm.profiling.report.page import threads_text
from edgevlm.profiling.report.tables import (
    median_text,
    missing_by_reason,
    p90_text,
    token_floor_text,
)
from edgevlm.profiling.stages import time_shares
from edgevlm.registry import DEVICES
from edgevlm.units import megabytes, milliseconds, parse_bytes

_DEFAULT = ProfileRequest()


def main(
    bundle: o.BundleArgument,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE", help="local, ssh:USER@HOST[:PORT], adb[:SERIAL] or ios[:DEVICE]."
        ),
    ] = "local",
    memory: o.Memory = None,
    engine: o.Engine = None,
    threads: o.Threads = None,
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Timed answers.")] = _DEFAULT.runs,
    tokens_generated: Annotated[
        int, typer.Option(min=2, metavar="N", help="Tokens of each answer.")
    ] = _DEFAULT.tokens_generated,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An image; a packaged one if not given.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The question; one of ours if not given. Of a bundle with embeddings, a text to"
            " encode instead of an image.",
        ),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            min=0, metavar="MINUTES", help="Afterwards, answer without a pause for this long."
        ),
    ] = _DEFAULT.minutes,
    max_fallback: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Exit 1 if more than N operators run elsewhere than on the wanted processor.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the profile as JSON."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page for a browser (HTML).")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a trace for Perfetto or Chrome.")
    ] = None,
    runner: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Phones: app or program to install, to run the bundle."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what the device printed.")
    ] = None,
    json: o.Json = False,
) -> None:
    """Measure BUNDLE on a device.

    Time and memory of each block, tokens per second, operators, and energy where it is known.
    """
    name, _, address = device.partition(":")
    transport = DEVICES.load(name)
    request = ProfileRequest(image, prompt, runs, tokens_generated, minutes)
    budget = None if memory is None else parse_bytes(memory)
    job = Job(Path(bundle), request, engine, threads, budget, runner, log)
    for path in filter(None, (output, report, trace, log)):
        check_file(path)
    with progress() as step:
        found = transport.profile(address, job, step)
    _write(found, output, report, trace)
    answer(found, _text(found), json)
    for warning in found.warnings:
        say(f"note: {warning}")
    _check_fallback(found, max_fallback)


def _write(found: Profile, output: Path | None, report: Path | None, trace: Path | None) -> None:
    """The files that are asked for."""
    if output is not None:
        write_profile(found, output)
    if report is not None:
        write_text(report, page_of(found))
    if trace is not None:
        write_text(trace, chrome_trace(found))
    for path in filter(None, (output, report, trace)):
        say(f"wrote {path}")


def _check_fallback(found: Profile, most: int | None) -> None:
    """Exit 1 with one line if too many operators are elsewhere, or nobody counted them."""
    if most is None:
        return
    if found.fallback is None:
        say(f"edgevlm: fallback is not known: {found.not_measured['fallback']}")
        raise typer.Exit(1)
    if found.fallback > most:
        where = ", ".join(f"{n} on {name}" for name, n in (found.placement or {}).items())
        say(f"edgevlm: fallback is {found.fallback}, --max-fallback allows {most} ({where})")
        raise typer.Exit(1)


def _text(found: Profile) -> str:
    parts = (_card(found), _stages(found), _blocks(found), _whole(found))
    return "\n\n".join("\n".join(map(printable, part.split("\n"))) for part in parts)


def _card(found: Profile) -> str:
    machine, text = found.machine, found.text
    lines = [
        f"{found.bundle}: {found.engine_version}, {threads_text(found)}; {machine.processor},"
        f" {machine.cores} cores, {machine.system}",
        f"weights {megabytes(found.card.weights_bytes)}",
    ]
    if text is not None:
        asked = text.question
        lines[-1] += (
            f"; KV cache {megabytes(text.kv_bytes)}, {text.kv_bytes_per_token:,} bytes per token;"
            f" {asked.visual_tokens} visual + {asked.prompt_tokens - asked.visual_tokens} other"
            " tokens"
        )
        lines.append(f"floor of a token: {token_floor_text(found)}")
    return "\n".join(lines)


def _stages(found: Profile) -> str:
    total = found.end_to_end_ms
    rows = [
        [share.label, milliseconds(s.median), milliseconds(s.p90),
         f"{100 * s.median / total.median:.1f} %"]
        for share in time_shares(found.kind)
        if (s := found.stages[share.name]).median
    ]  # fmt: skip
    rows.append(["total", milliseconds(total.median), milliseconds(total.p90), ""])
    return table([f"one answer, n {total.n}", "median ms", "p90 ms", "time"], rows)


def _blocks(found: Profile) -> str:
    rows = [
        [f"{b.name}.{b.function}", f"{b.calls}", median_text(b.run_ms), p90_text(b.run_ms),
         median_text(b.answer_ms), median_text(b.load_ms), median_text(b.evict_ms),
         "-" if b.resident_bytes is None else megabytes(b.resident_bytes, unit="")]
        for b in found.blocks
    ]  # fmt: skip
    head = ["function", "calls", "run ms", "p90", "per answer", "load ms", "evict ms", "MB"]
    return table(head, rows)


def _whole(found: Profile) -> str:
    budget = "" if found.budget_bytes is None else f" of {megabytes(found.budget_bytes)}"
    private = found.peak_footprint_bytes
    placed = ", ".join(f"{n:,} on {name}" for name, n in (found.placement or {}).items())
    lines = [
        *_answer_lines(found),
        f"peak {megabytes(found.peak_rss_bytes)}{budget} resident"
        + ("" if private is None else f", {megabytes(private)} private"),
        f"operators: {placed}; fallback {found.fallback}" if placed else "operators: not known",
    ]
    if found.energy_joules is not None:
        lines.append(f"energy {found.energy_joules:.3f} J per answer")
    if found.sustained:
        first, last = found.sustained[0], found.sustained[-1]
        lines.append(
            f"sustained: {len(found.sustained)} answers in {last.seconds:.0f} s,"
            f" {milliseconds(first.answer_ms)} ms at first, {milliseconds(last.answer_ms)} ms at"
            " the end"
        )
    reasons = missing_by_reason(found)
    lines += [f"not measured: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return "\n".join(lines)


def _answer_lines(found: Profile) -> list[str]:
    """The figures of the type of answer."""
    if found.ttft_ms is not None and found.decode_tokens_per_s is not None:
        tokens = f"{found.decode_tokens_per_s:,.1f} tokens/s"
        return [f"first token {milliseconds(found.ttft_ms)} ms, then {tokens}"]
    return [f"encode {median_text(found.embedding.encode_ms)} ms"] if found.embedding else []
