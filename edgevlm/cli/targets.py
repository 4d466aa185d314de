"""`edgevlm targets`: formats that can be exported to."""

from __future__ import annotations

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, table
from edgevlm.exporters.contract import find_target
from edgevlm.libraries import require_torch
from edgevlm.registry import TARGETS


def main(json: o.Json = False) -> None:
    """List the export targets with their quantization schemes."""
    require_torch()
    targets = {name: find_target(name) for name in TARGETS.names()}
    rows = [
        {"name": name, "summary": target.summary, "schemes": list(target.schemes)}
        for name, target in targets.items()
    ]
    cells = [[name, target.summary, ", ".join(target.schemes)] for name, target in targets.items()]
    answer(rows, table(["target", "summary", "schemes"], cells), json)
