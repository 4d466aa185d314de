"""`edgevlm models`: model families that can be exported."""

from __future__ import annotations

from edgevlm.api import require_torch
from edgevlm.cli.shared import options as o
from edgevlm.registry import FAMILIES


def main(json: o.Json = False) -> None:
    """List the model families, by transformers' model_type."""
    require_torch()
    rows = [
        {"name": name, "summary": str(FAMILIES.load(name).__doc__).splitlines()[0]}
        for name in FAMILIES.names()
    ]
    text = o.table(["model_type", "what it is"], [[r["name"], r["summary"]] for r in rows])
    o.answer(rows, text, json)
