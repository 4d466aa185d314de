"""`edgevlm methods`: token-reduction methods, with their source and the differences from it."""

from __future__ import annotations

import textwrap
from typing import Annotated, Any

import typer

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, table
from edgevlm.libraries import require_torch
from edgevlm.registry import METHODS

ABOUT = (
    "A method here is a way to have fewer visual tokens, most often a paper's, as a static graph:"
    " the same number of tokens for every picture. At site tokens it works on what the projector"
    " gives, where many originals work before it; the summary says where that makes another result."
    " What was compared with the original, and nothing beyond it, is:"
)
MORE = "`edgevlm methods NAME` has a method's options, its source and what differs from it."


def main(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One method, with its options.")
    ] = None,
    json: o.Json = False,
) -> None:
    """List the token-reduction methods, or say all about one: options, source, differences."""
    require_torch()
    from edgevlm.compress.shared.contract import COMPARISONS

    names = METHODS.names() if name is None else [name.replace("-", "_")]
    rows = [_row(each, site) for each in names for site in METHODS.sites_of(each)]
    if name is not None:
        answer(rows, "\n\n".join(_described(row) for row in rows), json)
        return
    cells = [[r["name"], r["site"], r["compared"], r["summary"]] for r in rows]
    width = max(map(len, COMPARISONS))
    legend = (f"  {each:{width}}  {meaning}" for each, meaning in COMPARISONS.items())
    methods = table(["method", "site", "compared by", "summary"], cells)
    answer(rows, "\n".join([*textwrap.wrap(ABOUT, 100), *legend, MORE, "", methods]), json)


def _row(name: str, site: str) -> dict[str, Any]:
    from edgevlm.compress.shared.described import method_options

    module = METHODS.load(name, site)
    return {
        "name": name,
        "site": site,
        "compared": module.COMPARED,
        "summary": module.SUMMARY,
        "options": method_options(module.Method, site),
        "calibrated": hasattr(module, "calibrate"),
        "formula": module.FORMULA,
        "source": module.SOURCE,
        "differs": module.DIFFERS,
        "signals": list(module.Method.signals),
    }


def _described(row: dict[str, Any]) -> str:
    """All about a method at one site."""
    lines = [f"{row['name']}@{row['site']}: {row['summary']}", "", "options:"]
    lines += [f"  {option}" for option in row["options"]] or ["  none"]
    if row["calibrated"]:
        lines.append(f"  `edgevlm calibrate {row['name']}@{row['site']}` finds some on pictures")
    lines += ["", f"formula: {row['formula']}", f"compared by: {row['compared']}"]
    lines += [f"source: {row['source']}", f"differs: {row['differs']}"]
    return "\n".join(part for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, 100, subsequent_indent=f"{indent}    ") or [""]
