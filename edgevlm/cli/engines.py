"""`edgevlm engines`: the engines that run bundles, or why they cannot."""

from __future__ import annotations

from typing import Any

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, table
from edgevlm.errors import RuntimeLoadError
from edgevlm.registry import ENGINES
from edgevlm.runtimes.engine import find_engine


def main(json: o.Json = False) -> None:
    """List the engines that run bundles.

    An engine that is not installed is listed with the extra to install.
    """
    rows = [_row(name) for name in ENGINES.names()]
    cells = [
        [row["name"], ", ".join(row["targets"]) or "-", row["summary"] or row["reason"]]
        for row in rows
    ]
    answer(rows, table(["engine", "targets", "note"], cells), json)


def _row(name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "available": False, "summary": None, "targets": []}
    try:
        engine = find_engine(name)
        details = {"summary": engine.summary(), "targets": list(engine.targets)}
    except RuntimeLoadError as cause:
        return row | {"reason": str(cause)}
    return row | details | {"available": True, "reason": None}
