"""`edgevlm inspect`: what a bundle holds; every file's hash is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.bundle import Bundle
from edgevlm.cli import _options as o
from edgevlm.registry import ENGINES

if TYPE_CHECKING:
    from edgevlm.runtimes._ml_report import FunctionReport


def main(bundle: o.BundleArgument, json: o.Json = False) -> None:
    """List files, blocks and limits of BUNDLE."""
    opened = Bundle.open(bundle)
    for entry in opened.plan.files:
        opened.file(entry.path)
    plan = opened.plan
    programs = _programs(opened)
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
        "placement": None,
        "not_measured": {"placement": "known only when a device has run the bundle"},
    }
    rows = [[f.path, f"{f.bytes:,}", f.sha256[:12]] for f in plan.files]
    needs = ", ".join(f"{name} {version}" for name, version in plan.requires.versions)
    text = (
        f"{plan.source.model} ({plan.source.family}) for {plan.recipe.target}, format"
        f" {plan.format_version}, {len(plan.blocks)} blocks, {plan.visual_tokens} visual tokens,"
        f" context {plan.host.kv.tokens}\nneeds {needs}\n\n"
        + o.table(["file", "bytes", "sha256"], rows)
        + (_shown(programs) if programs else "")
    )
    o.answer(document, text, json)


def _programs(bundle: Bundle) -> list[FunctionReport] | None:
    """Operations of a Core ML bundle; None for other targets."""
    if bundle.plan.recipe.target != "coreml":
        return None
    ENGINES.load("coreml-reference")  # says what is missing
    from edgevlm.runtimes._ml_report import static_report

    return static_report(bundle)


def _shown(programs: list[FunctionReport]) -> str:
    heads = ["block", "function", "operations", "rank", "float32", "largest", "seen on the CPU"]
    rows = [
        [
            p.block,
            p.function,
            str(p.operations),
            str(p.rank),
            str(p.float32),
            o.megabytes(p.largest_bytes),
            ", ".join(f"{count} {kind}" for kind, count in p.fall_back.items()),
        ]
        for p in programs
    ]
    return (
        "\n\n"
        + o.table(heads, rows)
        + "\nThe Neural Engine computes in float16 alone; where an operation runs, a device says."
    )
