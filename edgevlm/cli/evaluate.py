"""`edgevlm evaluate`: accuracy of a bundle, of a model, or of many token budgets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, every, on_terminal, printable, progress, say, table
from edgevlm.evaluation.answerers import answerer, is_bundle
from edgevlm.evaluation.evaluate import Evaluation, evaluate, find_dataset
from edgevlm.evaluation.scores import Score
from edgevlm.recipe import MOST_FRAMES
from edgevlm.studies.sweep import ALL, SweepRequest, SweepRow, parse_methods, parse_sweep, sweep
from edgevlm.studies.sweep_files import check_prefix, require_matplotlib, write
from edgevlm.units import megabytes

PAUSE_S = 10.0  # between two lines of a sweep's log


def main(
    subject: Annotated[
        str,
        typer.Argument(metavar="BUNDLE|MODEL", help="A bundle, or a model to run in PyTorch."),
    ] = "embedded",
    dataset: Annotated[
        str,
        typer.Option(
            metavar="DATASET", help="NAME, NAME:PATH, or a .jsonl file; see docs/datasets.md."
        ),
    ] = "embedded",
    only: Annotated[
        str | None,
        typer.Option(
            metavar="KIND|TASK,…",
            help="Ask these alone: clip, image, or tasks as the table names them.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of scenes; default: all.")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_FRAMES,
            metavar="N",
            help="For a model: frames of a clip; default: 1, still images.",
        ),
    ] = None,
    engine: o.Engine = None,
    threads: o.Threads = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the confidence intervals.")
    ] = 0,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="tokens=N,N,…",
            help="For a model: export, evaluate and compare these token budgets.",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[@SITE],…",
            help=f"With --sweep: methods to compare, of site tokens or decoder; {ALL}@decoder is"
            f" all of that site; default: {ALL}, those of site tokens.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PREFIX",
            help="With --sweep: write PREFIX.csv and PREFIX.png.",
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="With --sweep: folder for the bundles; default: the cache."
        ),
    ] = None,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Measure the accuracy of answers on a dataset.

    Asks every question; accuracies have 95 % confidence intervals.
    """
    _check(subject, sweep, methods, output, keep)
    data = find_dataset(dataset, _names(only))
    if sweep is not None:
        tried = (parse_sweep(sweep), parse_methods(ALL if methods is None else methods))
        request = SweepRequest(subject, data, *tried, frames or 1, limit, engine)
        _many(replace(request, threads=threads, seed=seed, keep=keep), str(output), force, json)
        return
    with progress() as step:
        step(f"open {subject}")
        source = answerer(subject, frames, engine, threads)
        scenes = data.examples(source.frames, limit)
        evaluation = evaluate(source, scenes, subject, dataset, seed, every(PAUSE_S, step))
    _show(evaluation, json)


def _check(
    subject: str,
    sweep: str | None,
    methods: str | None,
    output: str | None,
    keep: Path | None,
) -> None:
    """Refuse options that conflict."""
    if sweep is None:
        for name, value in (("methods", methods), ("output", output), ("keep", keep)):
            if value is not None:
                raise typer.BadParameter(f"--{name} needs --sweep")
    elif output is None:
        raise typer.BadParameter("--sweep needs --output PREFIX for its files")
    elif is_bundle(subject):
        raise typer.BadParameter("--sweep takes a model, got a bundle")


def _names(only: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (only or "").split(","))
    if only is not None and not all(names):
        raise typer.BadParameter(f"--only takes names with commas between them, got '{only[:60]}'")
    return names if only else ()


def _show(evaluation: Evaluation, as_json: bool) -> None:
    if not as_json:
        Console(stderr=True).print(_table(evaluation))
        for reason, count in evaluation.left_out.items():
            say(f"skipped {count} scenes: {reason}")
    answer(evaluation, _summary(evaluation), as_json)


def _many(request: SweepRequest, output: str, force: bool, json: bool) -> None:
    check_prefix(output, force)
    require_matplotlib()
    with progress() as step:
        rows = sweep(request, every(PAUSE_S, step), say if on_terminal() else step)
    (first, *_) = [row.evaluation for row in rows if row.evaluation]
    title = f"{request.model} on {request.dataset.name}: {first.n} questions, {first.engine}"
    files = write(rows, title, output, force)
    for reason, count in first.left_out.items():
        say(f"skipped {count} scenes: {reason}")
    say(f"wrote {' and '.join(str(path) for path in files)}")
    document = {
        "model_or_bundle": request.model,
        "dataset": request.dataset.name,
        "rows": rows,
        "files": [str(path) for path in files],
    }
    answer(document, _sweep_table(rows), json)


def _table(result: Evaluation) -> Table:
    grid = Table(title=Text(printable(f"{result.model_or_bundle} on {result.dataset}")))
    grid.add_column("")
    for head in ("accuracy", "95 % interval", "n"):
        grid.add_column(head, justify="right")
    for scores in (result.tasks, result.groups):
        for name, score in scores.items():
            grid.add_row(Text(printable(name)), *_cells(score))
        grid.add_section()
    total = Score(result.accuracy, result.low, result.high, result.n)
    grid.add_row("all", *_cells(total))
    return grid


def _cells(score: Score) -> tuple[str, str, str]:
    interval = f"{score.low:.1%} to {score.high:.1%}"
    return f"{score.accuracy:.1%}", interval, f"{score.n:,}"


def _summary(result: Evaluation) -> str:
    kinds = {"image": "images", "clip": "clips", "still as clip": "images repeated as clips"}
    about = ", ".join(f"{count:,} about {kinds[kind]}" for kind, count in result.asked.items())
    times, size = result.ttft_ms, result.bundle_bytes
    return (
        f"accuracy {result.accuracy:.1%}, 95 % interval {result.low:.1%} to {result.high:.1%};"
        f" {result.n:,} questions ({about}) in {result.scenes:,} scenes;"
        f" {result.visual_tokens} visual tokens;"
        + (f" first token {times.median:.0f} ms, p90 {times.p90:.0f};" if times else "")
        + (f" {megabytes(size)};" if size else "")
        + f" {result.engine}"
    )


def _sweep_table(rows: list[SweepRow]) -> str:
    head = ["method", "tokens", "accuracy", "95 %", "detail", "multi-turn", "ms", "bundle", ""]
    return table(head, [_sweep_cells(row) for row in rows])


def _sweep_cells(row: SweepRow) -> list[object]:
    evaluation = row.evaluation
    if evaluation is None:
        return [row.method, row.tokens, *["-"] * 6, row.reason]
    detail, turns = (evaluation.groups.get(name) for name in ("detail", "multi_turn"))
    times, size = evaluation.ttft_ms, evaluation.bundle_bytes
    return [
        row.method,
        row.tokens,
        f"{evaluation.accuracy:.1%}",
        f"{evaluation.low:.1%} to {evaluation.high:.1%}",
        f"{detail.accuracy:.1%}" if detail else "-",
        f"{turns.accuracy:.1%}" if turns else "-",
        f"{times.median:.1f}" if times else "-",
        megabytes(size) if size else "-",
        "",
    ]
