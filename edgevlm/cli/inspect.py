"""`edgevlm inspect`: what a bundle holds; every file's hash is checked."""

from __future__ import annotations

from edgevlm.bundle import Bundle
from edgevlm.cli import _options as o


def main(bundle: o.BundleArgument, json: o.Json = False) -> None:
    """List files, blocks and limits of BUNDLE."""
    opened = Bundle.open(bundle)
    for entry in opened.plan.files:
        opened.file(entry.path)
    plan = opened.plan
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
    )
    o.answer(document, text, json)
