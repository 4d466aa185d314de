"""`edgevlm methods`: token reductions, with their source and how they differ from it."""

from __future__ import annotations

from edgevlm.api import require_torch
from edgevlm.cli import _options as o
from edgevlm.registry import METHODS


def main(json: o.Json = False) -> None:
    """List the token-reduction methods."""
    require_torch()
    rows = []
    for name in METHODS.names():
        module = METHODS.load(name)
        rows.append(
            {
                "name": name,
                "site": module.SITE,
                "summary": module.SUMMARY,
                "source": module.SOURCE,
                "differs": module.DIFFERS,
                "signals": list(module.Method.signals),
            }
        )
    text = o.table(
        ["method", "site", "what it does", "source"],
        [[r["name"], r["site"], r["summary"], r["source"]] for r in rows],
    )
    o.answer(rows, text, json)
