"""`edgevlm methods`: token-reduction methods, with their source and the differences from it."""

from __future__ import annotations

from typing import Any

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, table
from edgevlm.libraries import require_torch
from edgevlm.registry import METHODS


def main(json: o.Json = False) -> None:
    """List the token-reduction methods."""
    require_torch()
    rows = [_row(name) for name in METHODS.names()]
    cells = [[r["name"], ", ".join(r["sites"]), r["summary"], r["source"]] for r in rows]
    answer(rows, table(["method", "sites", "summary", "source"], cells), json)


def _row(name: str) -> dict[str, Any]:
    sites = METHODS.sites_of(name)
    modules = [METHODS.load(name, site) for site in sites]
    return {
        "name": name,
        "sites": sites,
        "summary": _joined([module.SUMMARY for module in modules]),
        "source": _joined([module.SOURCE for module in modules]),
        "differs": _joined([module.DIFFERS for module in modules]),
        "signals": [signal for module in modules for signal in module.Method.signals],
    }


def _joined(texts: list[str]) -> str:
    """The texts of the method's files, each once, in the order of the sites."""
    return "; ".join(dict.fromkeys(texts))
