"""`edgevlm profile`: time and memory of a bundle on this machine or another device, by block."""

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
            metavar="DEVICE", help="One of local, ssh:USER@HOST[:PORT], adb[:SERIAL], ios[:DEVICE]."
        ),
    ] = "local",
    memory: o.Memory = None,
    engine: o.Engine = None,
    threads: o.Threads = None,
    runs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of timed answers.")
    ] = _DEFAULT.runs,
    tokens_generated: Annotated[
        int, typer.Option(min=2, metavar="N", help="Tokens of each answer of text.")
    ] = _DEFAULT.tokens_generated,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Image; default: a packaged photo.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Question about the image. For a bundle with embeddings: text to encode instead of"
            " an image.",
        ),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="MINUTES",
            help="After the runs, answer without a pause for so many minutes.",
        ),
    ] = _DEFAULT.minutes,
    max_fallback: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Exit with code 1 if more than N operators run on another processor.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the profile as JSON."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the profile as an HTML page.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace for Perfetto or chrome://tracing."),
    ] = None,
    runner: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Phones: app or program to install, which runs the bundle."
        ),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the log of the device.")
    ] = None,
    json: o.Json = False,
) -> None:
    """Measure BUNDLE on a device.

    Time and memory of each block, tokens per second, operators, and energy if known.
    """
    name, _, address = device.partition(":")
    transport = DEVICES.load(name)
    request = ProfileRequest(image, prompt, runs, tokens_generated, minutes)
    budget = None if memory is None else parse_bytes(memory)
    job = Job(Path(bundle), request, engine, threads, budget, runner, log)
    for path in filter(None, (output, report, trace, log)):
        check_file(path)
    with progress() as step:
        profile = transport.profile(address, job, step)
    _write(profile, output, report, trace)
    answer(profile, _text(profile), json)
    for warning in profile.warnings:
        say(f"note: {warning}")
    _check_fallback(profile, max_fallback)


def _write(profile: Profile, output: Path | None, report: Path | None, trace: Path | None) -> None:
    """Write the requested files."""
    if output is not None:
        write_profile(profile, output)
    if report is not None:
        write_text(report, page_of(profile))
    if trace is not None:
        write_text(trace, chrome_trace(profile))
    for path in filter(None, (output, report, trace)):
        say(f"wrote {path}")


def _check_fallback(profile: Profile, allowed: int | None) -> None:
    """Exit with code 1 if too many operators run elsewhere, or their number is not known."""
    if allowed is None:
        return
    if profile.fallback is None:
        say(f"edgevlm: --max-fallback cannot be checked: {profile.not_measured['fallback']}")
        raise typer.Exit(1)
    if profile.fallback > allowed:
        where = ", ".join(f"{n} on {name}" for name, n in (profile.placement or {}).items())
        say(f"edgevlm: fallback is {profile.fallback}, --max-fallback allows {allowed} ({where})")
        raise typer.Exit(1)


def _text(profile: Profile) -> str:
    parts = (_card(profile), _stages(profile), _blocks(profile), _totals(profile))
    return "\n\n".join("\n".join(map(printable, part.split("\n"))) for part in parts)


def _card(profile: Profile) -> str:
    machine, text = profile.machine, profile.text
    lines = [
        f"{profile.bundle}: {profile.engine_version}, {threads_text(profile)}; {machine.processor},"
        f" {machine.cores} cores, {machine.system}",
        f"weights {megabytes(profile.card.weights_bytes)}",
    ]
    if text is not None:
        question = text.question
        other = question.prompt_tokens - question.visual_tokens
        lines[-1] += (
            f"; KV cache {megabytes(text.kv_bytes)}, {text.kv_bytes_per_token:,} bytes per token;"
            f" {question.visual_tokens} visual + {other} other tokens"
        )
        lines.append(f"floor of a token: {token_floor_text(profile)}")
    return "\n".join(lines)


def _stages(profile: Profile) -> str:
    total = profile.end_to_end_ms
    rows = [
        [share.label, milliseconds(s.median), milliseconds(s.p90),
         f"{100 * s.median / total.median:.1f} %"]
        for share in time_shares(profile.kind)
        if (s := profile.stages[share.name]).median
    ]  # fmt: skip
    rows.append(["total", milliseconds(total.median), milliseconds(total.p90), ""])
    return table([f"one answer, n {total.n}", "median ms", "p90 ms", "time"], rows)


def _blocks(profile: Profile) -> str:
    rows = [
        [f"{b.name}.{b.function}", f"{b.calls}", median_text(b.run_ms), p90_text(b.run_ms),
         median_text(b.answer_ms), median_text(b.load_ms), median_text(b.evict_ms),
         "-" if b.resident_bytes is None else megabytes(b.resident_bytes, unit="")]
        for b in profile.blocks
    ]  # fmt: skip
    head = ["function", "calls", "run ms", "p90", "per answer", "load ms", "evict ms", "MB"]
    return table(head, rows)


def _totals(profile: Profile) -> str:
    budget = "" if profile.budget_bytes is None else f" of {megabytes(profile.budget_bytes)}"
    private = profile.peak_footprint_bytes
    placed = ", ".join(f"{n:,} on {name}" for name, n in (profile.placement or {}).items())
    lines = [
        *_answer_lines(profile),
        f"peak {megabytes(profile.peak_rss_bytes)}{budget} resident"
        + ("" if private is None else f", {megabytes(private)} private"),
        f"operators: {placed}; fallback {profile.fallback}" if placed else "operators: not known",
    ]
    if profile.energy_joules is not None:
        lines.append(f"energy {profile.energy_joules:.3f} J per answer")
    if profile.sustained:
        first, last = profile.sustained[0], profile.sustained[-1]
        lines.append(
            f"sustained: {len(profile.sustained)} answers in {last.seconds:.0f} s,"
            f" {milliseconds(first.answer_ms)} ms at first, {milliseconds(last.answer_ms)} ms at"
            " the end"
        )
    reasons = missing_by_reason(profile)
    lines += [f"not measured: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return "\n".join(lines)


def _answer_lines(profile: Profile) -> list[str]:
    """Figures of the kind of answer."""
    if profile.ttft_ms is not None and profile.decode_tokens_per_s is not None:
        tokens = f"{profile.decode_tokens_per_s:,.1f} tokens/s"
        return [f"first token {milliseconds(profile.ttft_ms)} ms, then {tokens}"]
    return [f"encode {median_text(profile.embedding.encode_ms)} ms"] if profile.embedding else []
