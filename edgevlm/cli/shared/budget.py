"""`edgevlm plan BUNDLE --memory`: loads and times with a memory budget, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevlm.bundle.documents import dumps
from edgevlm.bundle.files import MEASURED
from edgevlm.bundle.plan import MANIFEST
from edgevlm.bundle.writing import write_inside
from edgevlm.cli.shared.output import answer, say, table
from edgevlm.errors import RecipeError
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.residency.streamed import StreamedBlocks
from edgevlm.units import megabytes

WORDS = {
    "encode": "view", "prefill": "chunk of the prompt", "decode": "token",
    "check": "check of a draft", "vision": "image", "text": "text",
}  # fmt: skip


def show(path: str, memory: str, save: bool, as_json: bool) -> None:
    """Print the schedule of each pass for a budget, and `save` it in the bundle for apps.

    Raises:
        RecipeError: If `path` is not a bundle, which is necessary to measure times.
        PlanError: If the budget is too small; the message has the smallest one.
    """
    if not (Path(path) / MANIFEST).is_file():
        raise RecipeError(
            f"--memory needs a bundle to measure its blocks on this machine, got '{path}'; export"
            " it first"
        )
    blocks = load_loop(path, memory=memory, progress=say).blocks
    assert isinstance(blocks, StreamedBlocks)
    document: dict[str, Any] = {
        "budget_bytes": blocks.budget_bytes,
        "minimum_budget_bytes": blocks.minimum_budget_bytes,
        "fixed_bytes": blocks.fixed_bytes,
        "engine": blocks.engine.name,
        "predicted": {
            "pass_ms": {name: schedule.pass_ms for name, schedule in blocks.schedules.items()},
            "peak_bytes": blocks.fixed_bytes + max(s.peak_bytes for s in blocks.schedules.values()),
            "loads": {name: len(schedule.loads) for name, schedule in blocks.schedules.items()},
        },
        "schedules": blocks.schedules,
    }
    rows = [
        [
            WORDS[name],
            f"{len(schedule.resident)} of {len(schedule.units)}",
            len(schedule.loads),
            f"{schedule.pass_ms:.0f}",
            f"{sum(unit.run_ms for unit in schedule.units):.0f}",
            megabytes(schedule.peak_bytes),
        ]
        for name, schedule in blocks.schedules.items()
        if name in WORDS
    ]
    text = (
        f"{megabytes(blocks.budget_bytes)} for the process, {megabytes(blocks.fixed_bytes)} of"
        f" it before any block; the smallest budget is {megabytes(blocks.minimum_budget_bytes)}"
        f" ({blocks.engine.name}, measured on this machine)\n\n"
        + table(["pass", "resident", "loads", "ms", "all resident, ms", "blocks"], rows)
    )
    blocks.close()
    if save:
        name = f"{MEASURED}/schedule-{blocks.engine.name}-{memory}.json"
        file = write_inside(Path(path), name, dumps(document))
        say(f"wrote {file}")
    answer(document, text, as_json)
