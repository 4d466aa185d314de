"""`edgevlm models`: model families that can be exported."""

from __future__ import annotations

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, table
from edgevlm.libraries import require_torch
from edgevlm.registry import FAMILIES

OTHERS = (
    "Other types that transformers maps to image-text-to-text take a generic path: one view of one"
    " size, and the encoder in one block. `edgevlm plan MODEL` says whether it takes a model."
)


def main(json: o.Json = False) -> None:
    """List the model families.

    Names are values of model_type in config.json.
    """
    require_torch()
    rows = [
        {"name": name, "summary": str(FAMILIES.load(name).__doc__).splitlines()[0]}
        for name in FAMILIES.names()
    ]
    text = table(["model_type", "summary"], [[r["name"], r["summary"]] for r in rows])
    answer(rows, f"{text}\n\n{OTHERS}", json)
