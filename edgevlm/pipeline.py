"""The flow, top to bottom: a recipe becomes a verified bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from edgevlm.bundle.documents import dumps
from edgevlm.bundle.files import Bundle, BundleWriter, check_free, writing
from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.host import Embedding
from edgevlm.bundle.packed import PACKINGS, pack
from edgevlm.bundle.plan import Plan
from edgevlm.errors import ExportError
from edgevlm.exporters.contract import (
    TABLE_FILE,
    SharedMatrix,
    Target,
    TargetOptions,
    find_target,
)
from edgevlm.exporters.repeats import without_repeats
from edgevlm.graphs.trace import signature, trace, weights
from edgevlm.libraries import objects_set_aside
from edgevlm.models.find import find
from edgevlm.models.weights.paging import KEPT_BYTES, in_memory
from edgevlm.parity.verification import Verification
from edgevlm.parity.verify import verify_model
from edgevlm.planning.plan import Planned, plan_with_weights
from edgevlm.quantization.calibrate import Calibration, calibrate
from edgevlm.quantization.half import check_half
from edgevlm.recipe import Recipe
from edgevlm.registry import engine_for
from edgevlm.runtimes.engine import find_engine
from edgevlm.runtimes.residency.memory import peak_rss_bytes
from edgevlm.units import TimeLeft

TABLE_BYTES = 1 << 25  # of a table in float32 that are written at a time
Progress = Callable[[str], None]
Graphs = dict[Hashable, Any]  # what a target lowered, by what `trace.signature` says of the block


@dataclass(frozen=True)
class Exported:
    """What `export` made, with what it cost.

    `verification` is None where no engine here has the backend that the recipe asks for.
    """

    bundle: Bundle
    verification: Verification | None
    seconds: float
    peak_rss_bytes: int


def export(
    recipe: Recipe,
    out: str | Path,
    force: bool = False,
    progress: Progress = lambda _: None,
    graphs: Graphs | None = None,
    accept_all: bool = False,
) -> Exported:
    """Load, plan, cut, trace, export, verify, and put the bundle in place.

    Args:
        recipe: What is asked for.
        out: Folder to write; by custom its name ends in `.edgevlm`.
        force: Replace a bundle that is there.
        progress: Called with one line per step.
        graphs: Graphs of earlier exports, and of this one afterwards. Exports may share them that
            differ in the budget or in the method of site `tokens` alone.
        accept_all: Keep a bundle that misses its thresholds; `studies.sensitivity` measures by how
            much.

    Raises:
        EdgeVLMError: One line that says what cannot work, or which block differs from PyTorch.
    """
    started, out = time.perf_counter(), Path(out)
    check_free(out, force)
    find_target(recipe.target)
    runs = runs_here(recipe)  # better said now than after the export that there is no engine
    checkpoint = find(recipe.model, recipe.revision)
    progress("plan")
    planned = plan_with_weights(recipe, checkpoint)
    for note in planned.notes:
        progress(note)
    contents = planned.checkpoint.contents
    with (
        writing(out, planned.plan, contents, force) as writer,
        objects_set_aside(),
        without_repeats(),
    ):
        progress("load the model")
        model = planned.checkpoint.load_model(KEPT_BYTES)
        check_half(planned, model, progress)
        seen = calibrate(recipe, planned.checkpoint, model, progress) if recipe.calibrate else None
        parts = planned.parts(model)
        planned = planned.measured(model, parts, progress)
        plan = _write(planned, parts, writer, progress, {} if graphs is None else graphs, seen)
        bundle = Bundle(writer.folder, writer.close(plan))
        verification = None
        if runs:
            verification = verify_model(bundle, planned, model, parts, progress)
            if not verification.ok and not accept_all:
                raise ExportError(verification.first_failure())
            writer.put("measured/parity.json", dumps(verification))
    seconds = time.perf_counter() - started
    return Exported(Bundle.open(out), verification, seconds, peak_rss_bytes())


def runs_here(recipe: Recipe) -> bool:
    """Whether the target's engine has the backend that the recipe asks for.

    Raises:
        RuntimeLoadError: If there is no engine at all.
    """
    engine = find_engine(engine_for(recipe.target))
    return recipe.backend is None or recipe.backend in engine.backends()


def _write(
    planned: Planned,
    parts: Any,
    writer: BundleWriter,
    progress: Progress,
    graphs: Graphs,
    seen: Calibration | None,
) -> Plan[Any]:
    """All files of the bundle but the manifest; the plan with their names."""
    plan, target = planned.plan, find_target(planned.plan.recipe.target)
    files = dict[str, str]()
    for name, table in plan.host.tables.items():
        stage = _folder(plan, name)
        if f"blocks/{stage}/{TABLE_FILE}" in files.values():  # no block shares the other one either
            stage = name
        _write_table(table, parts.tables[name], writer.stage_folder(stage) / TABLE_FILE)
        files[name] = f"blocks/{stage}/{TABLE_FILE}"
    blocks, left = [], TimeLeft([block.stage for block in plan.blocks])
    for index, block in enumerate(plan.blocks):
        functions = writer.finished(block)
        if functions is None:
            rest = left.begin(index)
            progress(f"export {block.name} ({index + 1} of {len(plan.blocks)}){rest}")
            functions = _export_block(block, planned, parts, target, graphs, writer, seen)
            writer.finish(block, functions)
        blocks.append(replace(block, functions=functions))
    if plan.host.tables:
        (writer.folder / "tokenizer.json").write_text(planned.tokenizer_json, "utf-8", newline="")
    return replace(plan, blocks=tuple(blocks), host=plan.host.placed(files))


def _export_block(
    block: Block,
    planned: Planned,
    parts: Any,
    target: Target,
    graphs: Graphs,
    writer: BundleWriter,
    seen: Calibration | None,
) -> tuple[Function, ...]:
    module = planned.build(block, parts)
    key = signature(module, block)
    shared = None
    if block.shares:
        offsets = planned.plan.host.tables[block.shares].row_offset(block.span[0])
        shared = SharedMatrix(TABLE_FILE, *offsets)
    tops = seen.tops(weights(module)) if seen else {}
    with in_memory(module):
        lowered = None if block.stage == "reduce" else graphs.get(key)  # `reduce` is of one method
        if lowered is None:
            programs = {f.name: trace(module, f, block) for f in block.functions}
            recipe = planned.plan.recipe
            options = TargetOptions(recipe.scheme(block.stage), target.backend(recipe.backend))
            lowered = target.lower(programs, block, options)
            graphs[key] = lowered
        folder = writer.stage_folder(block.stage)
        functions = target.write(lowered, block, weights(module) | tops, folder, shared)
    return tuple(replace(f, file=f"blocks/{block.stage}/{f.file}") for f in functions)


def _folder(plan: Plan[Any], table: str) -> str:
    """The folder of a table: that of the blocks that share it, if there are any."""
    sharing = [block.stage for block in plan.blocks if block.shares == table]
    return sharing[0] if sharing else "embed"


def _write_table(table: Embedding, matrices: tuple[Tensor, ...], file: Path) -> None:
    """A table, some rows at a time: the numbers of all rows, then all scales."""
    packing, row = PACKINGS.get(table.dtype), 0
    height = max(1, TABLE_BYTES // (4 * table.columns))
    with file.open("wb") as out:
        for matrix in matrices:
            for start in range(0, matrix.shape[0], height):
                part = matrix.detach()[start : start + height].float().contiguous().numpy()
                packed = pack(part, packing) if packing else (part,)
                for offset, values in zip(table.row_offset(row), packed, strict=False):
                    out.seek(offset)
                    out.write(values.data)
                row += len(part)
