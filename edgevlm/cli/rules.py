"""`edgevlm rules`: rules that spare denoising steps of a video, with options and source."""

from __future__ import annotations

import textwrap
from dataclasses import fields
from typing import Any

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer
from edgevlm.registry import RULES

ABOUT = (
    "A rule spares calls of the denoiser, or its layers: `run --rule NAME:key=value`, or `export"
    " --rule` for the bundle's own. Of each role one rule at most."
)


def main(json: o.Json = False) -> None:
    """List the rules that spare denoising steps, with their options and defaults."""
    rows = [_row(name) for name in RULES.names()]
    lines = [line for row in rows for line in _described(row)]
    answer(rows, "\n".join([*textwrap.wrap(ABOUT, 100), *lines]), json)


def _row(name: str) -> dict[str, Any]:
    module = RULES.load(name)
    return {
        "name": name,
        "role": module.Rule.role,
        "summary": module.SUMMARY,
        "options": {each.name: each.default for each in fields(module.Rule)},
        "source": module.SOURCE,
        "differs": module.DIFFERS,
    }


def _described(row: dict[str, Any]) -> list[str]:
    options = ", ".join(f"{name}={value:g}" for name, value in row["options"].items())
    about = f"{row['summary']} Source: {row['source']}. Differs: {row['differs']}."
    inside = textwrap.wrap(about, 100, initial_indent="    ", subsequent_indent="    ")
    return ["", f"{row['name']}:{options}  ({row['role']})", *inside]
