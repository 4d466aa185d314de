"""Report on a Core ML program without a Mac: its operations, and those that may leave the NPU.

Core ML chooses the device of an operation when it runs. Two things are known in advance: the Neural
Engine computes in float16 alone, and top-k and gather by computed indices have run on the CPU
(roboflow/rf-detr, pull request 1495). Such operations split a program, so `reduce` has them in a
block of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.bundle.files import Bundle
from edgevlm.runtimes.inspection import Inspection, Table
from edgevlm.runtimes.loading import open_loop
from edgevlm.runtimes.loops.contract import RunRequest
from edgevlm.runtimes.on_coreml_reference import ml_program as program
from edgevlm.runtimes.on_coreml_reference.engine import Engine
from edgevlm.runtimes.residency.resident import ResidentBlocks

FALL_BACK = (
    "argsort",
    "gather",
    "gather_along_axis",
    "gather_nd",
    "non_zero",
    "scatter_nd",
    "topk",
)
BYTES = {
    "fp16": 2,
    "fp32": 4,
    "int32": 4,
    "int16": 2,
    "uint16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
FLOAT16_MAX = 65_504
SHOWN = 4  # kinds of operations in a row
TOKENS = 8  # tokens of each answer, so that `decode` runs too
Largest = dict[str, dict[str, float]]
# Operations that cost nothing, or run when the program is compiled.
SILENT = ("const", "read_state", "write_state")


@dataclass(frozen=True)
class FunctionReport:
    """Counts of one function.

    Attributes:
        block: Block.
        function: Function.
        operations: Operations that compute or move data.
        rank: Most dimensions of a tensor; the Neural Engine takes 5.
        float32: Operations with float32 outputs, which the Neural Engine does not compute.
        fall_back: Number of operations by kind, of the kinds that have run on the CPU.
        largest_bytes: Largest output of an operation.
    """

    block: str
    function: str
    operations: int
    rank: int
    float32: int
    fall_back: dict[str, int]
    largest_bytes: int


def inspection(bundle: Bundle, pictures: Sequence[Path], prompt: str) -> Inspection:
    """The reports of all functions; with images, the largest float16 values too."""
    programs = static_report(bundle)
    document: dict[str, Any] = {"programs": programs}
    tables = [_operations(programs)]
    if pictures:
        document["largest_float16"] = largest = largest_numbers(bundle, pictures, prompt)
        tables.append(_overflow(largest, len(pictures)))
    return Inspection(document, tuple(tables))


def static_report(bundle: Bundle) -> list[FunctionReport]:
    """A report for each function of a bundle of target `coreml`."""
    reports = []
    for block in bundle.plan.blocks:
        paths = bundle.files_of(block)
        packages = {path: program.read_package(path) for path in set(paths.values())}
        for name, path in paths.items():
            reports.append(_report(block.name, name, packages[path][name]))
    return reports


def largest_numbers(bundle: Bundle, pictures: Sequence[Path], question: str) -> Largest:
    """Largest float16 values while a question about each image is answered, or it is encoded.

    Args:
        bundle: A bundle of target `coreml`.
        pictures: Images, one after another; a clip repeats one image.
        question: The question; a few tokens of the answer are generated.

    Returns:
        For each `block.function` that computes in float16, the largest value by kind of operation,
        descending.

    Raises:
        InputError: If an image cannot be read.
    """
    engine = Engine(bundle)
    loop = open_loop(bundle, ResidentBlocks(bundle.plan, engine))
    for picture in pictures:
        frames = [picture] * bundle.plan.host.image.frames
        request = RunRequest(images=frames, questions=[question], max_new_tokens=TOKENS)
        for _ in loop.answers(request):  # each is computed when it is its turn
            pass
    return {
        f"{block}.{function}": dict(sorted(kinds.items(), key=lambda item: -item[1]))
        for (block, function), kinds in engine.largest.items()
    }


def _operations(programs: Sequence[FunctionReport]) -> Table:
    heads = ("block", "function", "operations", "rank", "float32", "largest", "may run on the CPU")
    rows = tuple(
        (
            p.block,
            p.function,
            str(p.operations),
            str(p.rank),
            str(p.float32),
            f"{p.largest_bytes / 1e6:,.1f} MB",
            ", ".join(f"{count} {kind}" for kind, count in p.fall_back.items()),
        )
        for p in programs
    )
    note = (
        "The Neural Engine computes in float16 alone; the device chooses where an operation runs."
    )
    return Table(heads, rows, note=note)


def _overflow(largest: Largest, pictures: int) -> Table:
    """Largest float16 values of each function, and the factor below the maximum of float16."""
    if not largest:
        return Table((), (), "No operation computes in float16.")
    rows = []
    for name, kinds in largest.items():
        top = next(iter(kinds.values()))
        room = f"{FLOAT16_MAX / top:,.0f} x" if top else "-"
        shown = ", ".join(f"{kind} {value:,.1f}" for kind, value in list(kinds.items())[:SHOWN])
        rows.append((name, "OVERFLOWS" if top > FLOAT16_MAX else room, shown))
    over = f"{pictures} image" + "s" * (pictures > 1)
    title = f"Largest values in float16 (maximum {FLOAT16_MAX:,}), {over}:"
    return Table(("function", "headroom", "largest by operation"), tuple(rows), title)


def _report(block: str, name: str, function: program.MilFunction) -> FunctionReport:
    counted = [
        op
        for op in function.operations
        if op.kind not in SILENT and not op.kind.startswith("constexpr_")
    ]
    values = [value for op in counted for value in op.outputs]
    kinds = Counter(op.kind for op in counted)
    return FunctionReport(
        block=block,
        function=name,
        operations=len(counted),
        rank=max((len(value.shape) for value in values), default=0),
        float32=sum(op.outputs[0].dtype == "fp32" for op in counted if op.kind != "cast"),
        fall_back={kind: kinds[kind] for kind in FALL_BACK if kinds[kind]},
        largest_bytes=max((_bytes(value) for value in values), default=0),
    )


def _bytes(value: program.Value) -> int:
    count = 1
    for size in value.shape:
        count *= size
    return count * BYTES.get(value.dtype, 4)
