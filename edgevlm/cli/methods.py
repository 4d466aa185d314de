"""`edgevlm methods`: token reductions, with their source and how they differ from it."""

from __future__ import annotations

from edgevlm.api import require_torch
from edgevlm.cli.shared import options as o
from edgevlm.registry import METHODS, sites_of


def main(json: o.Json = False) -> None:
    """List the token-reduction methods."""
    require_torch()
    rows = []
    for name in METHODS.names():
        module = METHODS.load(name)
        rows.append(
            {
                "name": name,
                "sites": sites_of(module),
                "summary": module.SUMMARY,
                "source": module.SOURCE,
                "differs": module.DIFFERS,
                "signals": list(module.Method.signals) if hasattr(module, "Method") else [],
            }
        )
    text = o.table(
        ["method", "sites", "what it does", "source"],
        [[r["name"], ", ".join(r["sites"]), r["summary"], r["source"]] for r in rows],
    )
    o.answer(rows, text, json)
