"""`edgevlm methods`: token reductions, with their source and how they differ from it."""

from __future__ import annotations

from typing import Any

from edgevlm.api import require_torch
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, table
from edgevlm.registry import METHODS, sites_of


def main(json: o.Json = False) -> None:
    """List the token-reduction methods."""
    require_torch()
    rows = [_row(name) for name in METHODS.names()]
    cells = [[r["name"], ", ".join(r["sites"]), r["summary"], r["source"]] for r in rows]
    answer(rows, table(["method", "sites", "what it does", "source"], cells), json)


def _row(name: str) -> dict[str, Any]:
    module = METHODS.load(name)
    return {
        "name": name,
        "sites": sites_of(module),
        "summary": module.SUMMARY,
        "source": module.SOURCE,
        "differs": module.DIFFERS,
        "signals": list(module.Method.signals) if hasattr(module, "Method") else [],
    }
