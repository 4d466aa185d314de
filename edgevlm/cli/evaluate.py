"""`edgevlm evaluate`: how often the answers are right, of a bundle, a model, or many budgets."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgevlm.cli.shared import options as o
from edgevlm.evaluation.answerers import answerer, is_bundle
from edgevlm.evaluation.evaluate import Evaluation, evaluate, find_dataset
from edgevlm.evaluation.scores import Score
from edgevlm.recipe import MOST_FRAMES
from edgevlm.studies.sweep import ALL, SweepRequest, SweepRow, parse_methods, parse_sweep, sweep
from edgevlm.studies.sweep_files import check_prefix, require_matplotlib, write

PAUSE_S = 10.0  # between two lines of a sweep's log


def main(
    asked: Annotated[
        str, typer.Argument(metavar="[BUNDLE|MODEL]", help="A bundle, or a model for PyTorch.")
    ] = o.Defaults.model,
    dataset: Annotated[
        str, typer.Option(help="NAME, NAME:PATH, or a .jsonl file; see docs/datasets.md.")
    ] = "embedded",
    limit: Annotated[int | None, typer.Option(min=1, help="Most scenes; all if not given.")] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_FRAMES, help="Frames of a clip, for a model; 1 is pictures."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Engine, see `edgevlm engines`.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; all cores if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the 95 % intervals.")] = 0,
    sweep: Annotated[
        str | None, typer.Option(help="Budgets to compare, for a model: tokens=8,16,32.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help=f"Methods of the sweep: NAME,NAME or '{ALL}' (default).")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="PREFIX of the sweep's .csv and .png.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the sweep's bundles; the cache if not given.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace the sweep's files.")] = False,
    json: o.Json = False,
) -> None:
    """Ask BUNDLE or MODEL every question of a dataset: accuracy with 95 % intervals."""
    if sweep is None:
        for name, value in (("methods", methods), ("output", output), ("keep", keep)):
            if value is not None:
                raise typer.BadParameter(f"--{name} goes with --sweep")
        _one(asked, dataset, limit, frames, engine, threads, seed, json)
        return
    if output is None:
        raise typer.BadParameter("give --output PREFIX for the files of the sweep")
    if is_bundle(asked):
        raise typer.BadParameter("a sweep exports bundles of a model; it takes no bundle")
    budgets, found = parse_sweep(sweep), find_dataset(dataset)
    request = SweepRequest(
        asked, found, budgets, parse_methods(methods or ALL), frames or 1, limit, engine, threads,
        seed, keep,
    )  # fmt: skip
    _many(request, output, force, json)


def _one(
    asked: str,
    dataset: str,
    limit: int | None,
    frames: int | None,
    engine: str | None,
    threads: int | None,
    seed: int,
    json: bool,
) -> None:
    found = find_dataset(dataset)
    with o.progress() as step:
        step(f"open {asked}")
        who = answerer(asked, frames, engine, threads)
        examples = found.examples(who.frames, limit)
        result = evaluate(who, examples, asked, dataset, seed, _seldom(step))
    if not json:
        Console(stderr=True).print(_table(result))
        for reason, count in result.left_out.items():
            o.say(f"left out: {count} scenes, {reason}")
    o.answer(result, _summary(result), json)


def _many(request: SweepRequest, output: str, force: bool, json: bool) -> None:
    check_prefix(output, force)
    require_matplotlib()
    with o.progress() as step:
        rows = sweep(request, _seldom(step), o.say if _terminal() else step)
    (whole, *_) = [row.evaluation for row in rows if row.evaluation]
    title = f"{request.model} on {request.dataset.name}: {whole.n} questions, {whole.engine}"
    files = write(rows, title, output, force)
    for reason, count in whole.left_out.items():
        o.say(f"left out: {count} scenes, {reason}")
    o.say(f"wrote {' and '.join(str(path) for path in files)}")
    document = {
        "model_or_bundle": request.model,
        "dataset": request.dataset.name,
        "rows": rows,
        "files": [str(path) for path in files],
    }
    o.answer(document, _sweep_table(rows), json)


def _table(result: Evaluation) -> Table:
    table = Table(title=Text(o.printable(f"{result.model_or_bundle} on {result.dataset}")))
    table.add_column("")
    for head in ("right", "95 %", "n"):
        table.add_column(head, justify="right")
    for part in (result.tasks, result.groups):
        for name, score in part.items():
            table.add_row(Text(o.printable(name)), *_cells(score))
        table.add_section()
    whole = Score(result.accuracy, result.low, result.high, result.n)
    table.add_row("all", *_cells(whole))
    return table


def _cells(score: Score) -> tuple[str, str, str]:
    interval = f"{score.low:.1%} to {score.high:.1%}"
    return f"{score.accuracy:.1%}", interval, f"{score.n:,}"


def _summary(result: Evaluation) -> str:
    kinds = {"image": "images", "clip": "clips", "still as clip": "images repeated as clips"}
    about = ", ".join(f"{count:,} about {kinds[kind]}" for kind, count in result.asked.items())
    times, size = result.ttft_ms, result.bundle_bytes
    return (
        f"{result.accuracy:.1%} right, 95 % interval {result.low:.1%} to {result.high:.1%};"
        f" {result.n:,} questions ({about}) in {result.scenes:,} scenes;"
        f" {result.visual_tokens} visual tokens;"
        + (f" first token {times.median:.0f} ms, p90 {times.p90:.0f};" if times else "")
        + (f" {o.megabytes(size)};" if size else "")
        + f" {result.engine}"
    )


def _sweep_table(rows: list[SweepRow]) -> str:
    head = ["method", "tokens", "right", "95 %", "detail", "multi-turn", "ms", "bundle", ""]
    return o.table(head, [_sweep_cells(row) for row in rows])


def _sweep_cells(row: SweepRow) -> list[object]:
    found = row.evaluation
    if found is None:
        return [row.method, row.tokens, *["-"] * 6, row.reason]
    detail, turns = (found.groups.get(name) for name in ("detail", "multi_turn"))
    times, size = found.ttft_ms, found.bundle_bytes
    return [
        row.method,
        row.tokens,
        f"{found.accuracy:.1%}",
        f"{found.low:.1%} to {found.high:.1%}",
        f"{detail.accuracy:.1%}" if detail else "-",
        f"{turns.accuracy:.1%}" if turns else "-",
        f"{times.median:.1f}" if times else "-",
        o.megabytes(size) if size else "-",
        "",
    ]


def _seldom(step: Callable[[str], None]) -> Callable[[str], None]:
    """Let a line through if the last is ten seconds ago: a log need not have every block.

    All lines go through on a terminal, where each takes the place of the last.
    """
    if _terminal():
        return step
    last = time.perf_counter() - PAUSE_S

    def say(text: str) -> None:
        nonlocal last
        if time.perf_counter() - last >= PAUSE_S:
            last = time.perf_counter()
            step(text)

    return say


def _terminal() -> bool:
    return Console(stderr=True).is_terminal
