"""`edgevlm inspect`: what a bundle holds; every file's hash is checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.kernels import Kernels, kernels
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, progress, table
from edgevlm.errors import RecipeError, RuntimeLoadError
from edgevlm.registry import ENGINES
from edgevlm.units import megabytes

if TYPE_CHECKING:
    from edgevlm.runtimes.on_coreml_reference.ml_report import FunctionReport, Largest


FLOAT16_MAX = 65_504
SHOWN = 4  # kinds of operations in a line


def main(
    bundle: o.BundleArgument,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Core ML: image to find the largest float16 numbers with; may be repeated.",
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="Question about each image.")
    ] = "What is this?",
    json: o.Json = False,
) -> None:
    """List files, blocks and limits of BUNDLE.

    The hash of every file is checked.
    """
    opened = Bundle.open(bundle)
    for entry in opened.plan.files:
        opened.file(entry.path)
    answer(*_inspected(opened, image or [], prompt), json)


def _inspected(opened: Bundle, pictures: list[Path], prompt: str) -> tuple[dict[str, Any], str]:
    """The document and the text."""
    plan = opened.plan
    programs = _programs(opened)
    placed, reason = _placement(opened)
    largest = _largest(opened, pictures, prompt) if pictures else None
    delegated = kernels(opened) if plan.recipe.target == "executorch" else None
    document = {
        "format_version": plan.format_version,
        "kind": plan.kind,
        "target": plan.recipe.target,
        "source": plan.source,
        "files": plan.files,
        "blocks": plan.blocks,
        "visual_tokens": plan.visual_tokens,
        "kv_bytes": plan.host.kv.bytes,
        "requires": dict(plan.requires.versions),
        "programs": programs,
        "kernels": delegated,
        "largest_float16": largest,
        "placement": placed,
        "not_measured": {} if placed else {"placement": reason},
    }
    rows = [[f.path, f"{f.bytes:,}", f.sha256[:12]] for f in plan.files]
    needs = ", ".join(f"{name} {version}" for name, version in plan.requires.versions)
    text = (
        f"{plan.source.model} ({plan.source.family}) for {plan.recipe.target}, format"
        f" {plan.format_version}, {len(plan.blocks)} blocks, {plan.visual_tokens} visual tokens,"
        f" context {plan.host.kv.tokens}\nneeds {needs}\n\n"
        + table(["file", "bytes", "sha256"], rows)
        + (_shown(programs) if programs else "")
        + (_delegated(delegated) if delegated else "")
        + (f"\n{_overflow(largest, len(pictures))}" if largest is not None else "")
        + (f"\n{_where(placed)}" if placed else "")
    )
    return document, text


def _programs(bundle: Bundle) -> list[FunctionReport] | None:
    """Operations of a Core ML bundle; None for other targets."""
    if bundle.plan.recipe.target != "coreml":
        return None
    ENGINES.load("coreml-reference")  # says what is missing
    from edgevlm.runtimes.on_coreml_reference.ml_report import static_report

    return static_report(bundle)


def _largest(bundle: Bundle, pictures: list[Path], prompt: str) -> Largest:
    """Largest numbers in float16, see `_ml_report`."""
    if bundle.plan.recipe.target != "coreml":
        raise RecipeError(f"--image is for Core ML, the bundle is for {bundle.plan.recipe.target}")
    from edgevlm.runtimes.on_coreml_reference.ml_report import largest_numbers

    with progress() as step:
        step(f"run {len(pictures)} pictures in numpy")
        return largest_numbers(bundle, pictures, prompt)


def _overflow(largest: Largest, pictures: int) -> str:
    """How near float16's end the numbers of each function come."""
    if not largest:
        return "\nNothing is computed in float16."
    rows = []
    for name, kinds in largest.items():
        top = next(iter(kinds.values()))
        room = f"{FLOAT16_MAX / top:,.0f} x" if top else "-"
        shown = ", ".join(f"{kind} {value:,.1f}" for kind, value in list(kinds.items())[:SHOWN])
        rows.append([name, "OVERFLOWS" if top > FLOAT16_MAX else room, shown])
    over = f"{pictures} picture" + "s" * (pictures > 1)
    return f"\nLargest numbers in float16 (it ends at {FLOAT16_MAX:,}), {over}:\n" + table(
        ["function", "room", "largest by operation"], rows
    )


def _placement(bundle: Bundle) -> tuple[dict[str, dict[str, int]] | None, str]:
    """Where a Mac would run the operations; None with the reason elsewhere."""
    if bundle.plan.recipe.target != "coreml":
        return None, "known only when a device has run the bundle"
    try:
        ENGINES.load("coreml")
    except RuntimeLoadError as cause:
        return None, str(cause)
    from edgevlm.runtimes.on_coreml import placement

    return placement(bundle), ""


def _where(placed: dict[str, dict[str, int]]) -> str:
    """The compute plan of this Mac, a line for each function."""
    heads, devices = ["function", "cpu", "gpu", "neural engine"], ("cpu", "gpu", "neural_engine")
    rows = [[name, *(str(n.get(device, 0)) for device in devices)] for name, n in placed.items()]
    return "\nOperations by device, as this Mac's Core ML plans them:\n" + table(heads, rows)


def _delegated(found: dict[str, Kernels]) -> str:
    """What the backend computes, and once for each kind what it leaves."""
    rows = [
        [name, str(k.delegated), str(k.calls), ", ".join(f"{x.count} {x.operator}" for x in k.left)]
        for name, k in found.items()
    ]
    reasons = {left.operator: left.reason for k in found.values() for left in k.left}
    why = table(["operator", "why the backend leaves it"], [[*item] for item in reasons.items()])
    heads = ["function", "by the backend", "calls", "left to ExecuTorch's own kernels"]
    return "\n\n" + table(heads, rows) + ("\n\n" + why if reasons else "")


def _shown(programs: list[FunctionReport]) -> str:
    heads = ["block", "function", "operations", "rank", "float32", "largest", "seen on the CPU"]
    rows = [
        [
            p.block,
            p.function,
            str(p.operations),
            str(p.rank),
            str(p.float32),
            megabytes(p.largest_bytes),
            ", ".join(f"{count} {kind}" for kind, count in p.fall_back.items()),
        ]
        for p in programs
    ]
    return (
        "\n\n"
        + table(heads, rows)
        + "\nThe Neural Engine computes in float16 alone; where an operation runs, a device says."
    )
