"""`edgevlm compare`: two profiles side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevlm.bundle.writing import write_text
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, printable, say, table
from edgevlm.profiling.document import read_profile
from edgevlm.profiling.report.comparison import (
    Comparison,
    ComparisonRow,
    compare,
    comparison_page,
    figure,
)


def main(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="Baseline, from `profile -o`.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Profile to compare with it.")],
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the comparison as an HTML page."),
    ] = None,
    json: o.Json = False,
) -> None:
    """Compare two profiles.

    Functions more than 20 % slower in B are marked SLOWER.
    """
    comparison = compare(read_profile(a), read_profile(b), (a.name, b.name))
    if report is not None:
        write_text(report, comparison_page(comparison))
        say(f"wrote {report}")
    answer(comparison, _text(comparison), json)


def _text(comparison: Comparison) -> str:
    rows = [
        [printable(row.name), figure(row, row.a), figure(row, row.b), _ratio(row)]
        for row in (*comparison.blocks, *comparison.totals)
    ]
    return table(["", "A", "B", "B / A"], rows) + f"\n{comparison.note}"


def _ratio(row: ComparisonRow) -> str:
    return "-" if row.ratio is None else f"{row.ratio:.2f}" + "  SLOWER" * row.slower
