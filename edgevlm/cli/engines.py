"""`edgevlm engines`: what runs bundles here, or why not."""

from __future__ import annotations

from edgevlm.cli.shared import options as o
from edgevlm.errors import RuntimeLoadError
from edgevlm.registry import ENGINES


def main(json: o.Json = False) -> None:
    """List the engines; one that is not installed says what it needs."""
    rows = []
    for name in ENGINES.names():
        try:
            module = ENGINES.load(name)
            rows.append(
                {
                    "name": name,
                    "available": True,
                    "summary": module.SUMMARY,
                    "targets": list(module.TARGETS),
                    "reason": None,
                }
            )
        except RuntimeLoadError as cause:
            rows.append(
                {
                    "name": name,
                    "available": False,
                    "summary": None,
                    "targets": [],
                    "reason": str(cause),
                }
            )
    text = o.table(
        ["engine", "runs", ""],
        [[r["name"], ", ".join(r["targets"]) or "-", r["summary"] or r["reason"]] for r in rows],
    )
    o.answer(rows, text, json)
