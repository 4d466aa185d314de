"""`edgevlm inspect`: contents of a bundle, after a check of every file's hash.

Reports of engines come from `Engine.inspect` of each engine that runs the target.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import Plan
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.kinds import printed
from edgevlm.cli.shared.output import answer, progress, table
from edgevlm.errors import RecipeError
from edgevlm.registry import ENGINES, KINDS
from edgevlm.runtimes.inspection import Inspection, Table


def main(
    bundle: o.BundleArgument,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Core ML: image to measure the largest float16 values with; may be repeated.",
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="Question about each image.")
    ] = "What is this?",
    json: o.Json = False,
) -> None:
    """List the files and constants of BUNDLE.

    Checks the hash of every file.
    """
    opened = Bundle.open(bundle)
    for entry in opened.plan.files:
        opened.file(entry.path)
    inspections = _inspections(opened, image or [], prompt)
    tables = [table for inspection in inspections for table in inspection.tables]
    text = _summary(opened.plan) + "".join(f"\n\n{_shown(part)}" for part in tables)
    answer(_document(opened.plan, inspections), text, json)


def _inspections(bundle: Bundle, pictures: list[Path], prompt: str) -> list[Inspection]:
    """The report of each engine of the bundle's target.

    Raises:
        RecipeError: If there are images, and no engine uses them.
    """
    target = bundle.plan.recipe.target
    engines = [ENGINES.load(name).Engine for name in ENGINES.names()]
    engines = [engine for engine in engines if target in engine.targets]
    if pictures and not any(engine.inspects_pictures for engine in engines):
        raise RecipeError(f"no engine of target '{target}' inspects with images; drop --image")
    with progress() as step:
        if pictures:
            step(f"run {len(pictures)} image{'s' * (len(pictures) > 1)}")
        return [engine.inspect(bundle, pictures, prompt) for engine in engines]


def _document(plan: Plan[Any], inspections: list[Inspection]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "format_version": plan.format_version,
        "kind": plan.kind,
        "target": plan.recipe.target,
        "source": plan.source,
        "files": plan.files,
        "blocks": plan.blocks,
        "requires": dict(plan.requires.versions),
        "host": plan.host,
        "placement": None,
    } | KINDS.load(plan.kind).facts(plan)
    why = {"placement": "known only after a device has run the bundle"}
    for inspection in inspections:
        document |= inspection.document
        why |= inspection.not_measured
    return document | {"not_measured": {k: v for k, v in why.items() if document.get(k) is None}}


def _summary(plan: Plan[Any]) -> str:
    rows = [[f.path, f"{f.bytes:,}", f.sha256[:12]] for f in plan.files]
    values = KINDS.load(plan.kind).facts(plan)
    facts = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in values.items())
    needs = ", ".join(f"{name} {version}" for name, version in plan.requires.versions)
    trial = f"{plan.recipe.trial}\n" if plan.recipe.trial else ""
    constants = trial + "\n".join(printed(plan.kind).plan_lines(plan, None))
    return (
        f"{plan.source.model} ({plan.source.family}) for {plan.recipe.target}, format"
        f" {plan.format_version}, {len(plan.blocks)} blocks, {facts}\nrequires {needs}\n"
        f"{constants}\n\n" + table(["file", "bytes", "sha256"], rows)
    )


def _shown(part: Table) -> str:
    rows = table([*part.heads], [[*row] for row in part.rows]) if part.rows else ""
    return "\n".join(text for text in (part.title, rows, part.note) if text)
