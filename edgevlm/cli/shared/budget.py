"""`edgevlm plan BUNDLE --memory`: what a budget would cost, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevlm.bundle.documents import dumps
from edgevlm.bundle.files import MEASURED
from edgevlm.bundle.plan import MANIFEST
from edgevlm.bundle.writing import write_text
from edgevlm.cli.shared.output import answer, say, table
from edgevlm.errors import RecipeError
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.residency.streamed import StreamedBlocks
from edgevlm.units import megabytes

WORDS = {
    "encode": "a view", "prefill": "a chunk of the prompt", "decode": "a token",
    "check": "a check of guesses", "vision": "an image", "text": "a text",
}  # fmt: skip


def show(path: str, memory: str, save: bool, as_json: bool) -> None:
    """Print the schedule of each pass under a budget, and `save` it in the bundle for apps.

    Raises:
        RecipeError: If `path` is no bundle: times are measured, so there has to be one.
        PlanError: If the budget is too small; the message says which one would do.
    """
    if not (Path(path) / MANIFEST).is_file():
        raise RecipeError(
            f"--memory plans with times measured on this machine, so it takes a bundle: '{path}' is"
            " none; export it first"
        )
    blocks = load_loop(path, memory=memory, progress=say).blocks
    assert isinstance(blocks, StreamedBlocks)
    document: dict[str, Any] = {
        "budget_bytes": blocks.budget_bytes,
        "minimum_budget_bytes": blocks.minimum_budget_bytes,
        "fixed_bytes": blocks.fixed_bytes,
        "engine": blocks.engine.name,
        "predicted": {
            "pass_ms": {name: made.pass_ms for name, made in blocks.schedules.items()},
            "peak_bytes": blocks.fixed_bytes + max(s.peak_bytes for s in blocks.schedules.values()),
            "loads": {name: len(made.loads) for name, made in blocks.schedules.items()},
        },
        "schedules": blocks.schedules,
    }
    rows = [
        [
            WORDS[name],
            f"{len(made.resident)} of {len(made.units)}",
            len(made.loads),
            f"{made.pass_ms:.0f}",
            f"{sum(unit.run_ms for unit in made.units):.0f}",
            megabytes(made.peak_bytes),
        ]
        for name, made in blocks.schedules.items()
        if name in WORDS
    ]
    text = (
        f"{megabytes(blocks.budget_bytes)} for the process, {megabytes(blocks.fixed_bytes)} of"
        f" it before any block; the smallest budget is {megabytes(blocks.minimum_budget_bytes)}"
        f" ({blocks.engine.name}, measured on this machine)\n\n"
        + table(["pass", "kept", "loads", "ms", "all kept, ms", "blocks"], rows)
    )
    blocks.close()
    if save:
        file = Path(path) / MEASURED / f"schedule-{blocks.engine.name}-{memory}.json"
        file.parent.mkdir(exist_ok=True)
        write_text(file, dumps(document))
        say(f"wrote {file}")
    answer(document, text, as_json)
