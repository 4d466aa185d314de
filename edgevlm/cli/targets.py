"""`edgevlm targets`: formats that can be exported to."""

from __future__ import annotations

from edgevlm.api import require_torch
from edgevlm.cli.shared import options as o
from edgevlm.registry import TARGETS


def main(json: o.Json = False) -> None:
    """List the targets with their quantization schemes."""
    require_torch()
    rows = [
        {"name": n, "summary": TARGETS.load(n).SUMMARY, "schemes": list(TARGETS.load(n).SCHEMES)}
        for n in TARGETS.names()
    ]
    text = o.table(
        ["target", "what it is", "schemes"],
        [[r["name"], r["summary"], ", ".join(r["schemes"])] for r in rows],
    )
    o.answer(rows, text, json)
