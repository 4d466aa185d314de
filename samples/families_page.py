"""Write docs/families.md: what each model family does here, and what its exports cost.

    python samples/families_page.py

`family_facts/` has its sources: plans of tiny presets, made on the spot without weights; measured
exports at true size (docs/families.jsonl); and every type that transformers maps to
image-text-to-text, tried from its default config. It takes some minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from family_facts.plans import FRAMES, LAYERS, TILES, Facts, facts
from family_facts.records import Record, read_records
from family_facts.types import Outcome, outcomes

from edgevlm.models.shared.llama import DECODERS
from edgevlm.registry import TARGETS

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
HEAD = """\
# Families

Written by `python samples/families_page.py`; nothing here is written by hand. A family takes
checkpoints of one `model_type` of transformers. [add-a-family.md](add-a-family.md) says how to
write one.

"""
PROCESSORS = """\
## Image processors

A bundle resizes and normalizes pictures by numbers of its manifest. `plan` compares the prompt, and
`export` and `verify` the pixels, with the checkpoint's own processor, whose images go through the
form on Pillow that transformers has of most image processors. Of LFM2-VL's it has a form on
torchvision alone. Without torchvision a stand-in tells the processor the sizes of pictures, so that
prompts are compared as ever; pixels are not, and `plan` and `verify` say so in a line. With the
torchvision that is made for the installed torch they are. The processor of Mistral 3 asks for
torchvision too, but takes one function of numbers from it: the form on Pillow is put in its place,
and all is compared. The encoders of FastVLM and Gemma 3n are timm's, which needs torchvision:
without the two they are refused with what to install. On the generic path a type without a form on
Pillow is refused.

A tile of Granite Docling is 64 tokens, or 256 by its fine route: the one that `fine_route` of the
checkpoint's image processor asks for is in the bundle.

"""
SIZES = """\
## Sizes

Presets of `samples/make_checkpoint.py` at true size: the published architecture with random
weights. Tokens are those of a picture by default, and with `--tokens` at a quarter; a family
without a number of its own has no true size there.

"""
METHODS = """\
## Methods

Plans of the tiny presets: each method at its site, at a quarter (site tokens) or half of the
tokens, at site decoder from layer 1 on where it has an option for layers. Families with the same
answers share a column. `yes` is taken, `tiles` only with a grid of tiles, `clips` only with
`--frames`, `layers` only from
another layer on, and a number is the reason below. Where a language model has recurrent layers
({recurrent}), a method of site decoder is taken if a layer that attends chooses: that goes by the
method's layers, by the depth of the model, and where a method has no option for layers (`aim`), or
rounds few tokens to as many as before, by `--tokens` too.

"""
MEASURED = """\
## Measured exports

From `docs/families.jsonl`; MB are 10^6 bytes, `-` is not measured.

"""
OTHER = """\
## Other types

Every type that transformers maps to image-text-to-text. `family`: it has a file here. `generic`:
it has none, and is exported and verified by the generic path. `refused`: the generic path says
why. `not tried`: nobody here has a checkpoint of it. From default configs: a checkpoint with
another language model or encoder may fare otherwise. Language models that are known: {decoders}.

"""


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        families = list(facts(Path(folder)))
    PAGE.write_text(page(families, read_records(), outcomes()), "utf-8")


def page(families: Sequence[Facts], records: Sequence[Record], types: Sequence[Outcome]) -> str:
    """The whole page."""
    decoders = ", ".join(f"`{name}`" for name in DECODERS)
    return "\n".join(
        [HEAD + SIZES + sizes(families), PROCESSORS + targets(families), methods(families),
         measured(records), OTHER.format(decoders=decoders) + other(types)]
    )  # fmt: skip


def sizes(families: Iterable[Facts]) -> str:
    """A row for each preset at true size."""
    rows = []
    for family in families:
        for size in family.sizes:
            tokens = "-" if size.tokens is None else f"{size.tokens}, {size.tokens // 4}"
            view = f"{size.view[0]}x{size.view[1]}"
            rows.append(
                (family.name, family.kind, size.preset, f"{size.parameters:,.0f} M", view, tokens)
            )
        if not family.sizes:
            rows.append((family.name, family.kind, family.unasked or "-", "-", "-", "-"))
    return table(("family", "kind", "preset", "parameters", "view, px", "visual tokens"), rows)


def targets(families: Iterable[Facts]) -> str:
    """A row for each target, with its schemes and whom it refuses."""
    rows = []
    for name in TARGETS.names():
        target = TARGETS.load(name).TARGET
        refused = [f"{f.name}: {f.targets[name]}" for f in families if f.targets.get(name)]
        schemes = ", ".join(f"`{scheme}`" for scheme in target.schemes)
        rows.append((f"`{name}`", schemes, "; ".join(refused) or "none"))
    return "## Targets and schemes\n\n" + table(("target", "schemes", "refused families"), rows)


def methods(families: Sequence[Facts]) -> str:
    """What is asked, methods x families, and the reasons."""
    asked = [family for family in families if not family.unasked]
    names, columns = list(asked[0].methods), dict[tuple[str, ...], list[str]]()
    for family in families:
        # Of a family whose library is missing nothing was asked.
        answers = family.methods if not family.unasked else dict.fromkeys(names, family.unasked)
        columns.setdefault(tuple(answers.values()), []).append(family.name)
    words = {"": "yes", TILES: "tiles", FRAMES: "clips", LAYERS: "layers"}
    reasons = dict.fromkeys(r for column in columns for r in column if r not in words)
    numbers = words | {r: str(i) for i, r in enumerate(reasons, 1)}
    heads = ["method", *(", ".join(names) for names in columns.values())]
    rows = [
        (f"`{name}`", *(numbers[column[index]] for column in columns))
        for index, name in enumerate(names)
    ]
    listed = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    recurrent = ", ".join(family.name for family in families if family.recurrent)
    return f"{METHODS.format(recurrent=recurrent)}{table(heads, rows)}\n{listed}\n"


def measured(records: Iterable[Record]) -> str:
    """A row for each measured export, and the machines."""
    heads = ("preset", "target", "scheme", "`--tokens`", "export, s", "peak, MB", "checkpoint, MB",
             "bundle, MB", "planned, written bytes", "run in half the weights", "on")  # fmt: skip
    rows, places = [], dict[str, int]()
    for r in records:
        where = f"{r.machine}, {r.threads} threads, {r.date}"
        sizes = f"{_number(r.planned_bytes)}, {_number(r.written_bytes)}"
        rows.append(
            (r.preset, f"`{r.target}`", f"`{r.scheme}`", _number(r.tokens), _number(r.seconds),
             _number(r.peak_mb), _number(r.checkpoint_mb), _number(r.bundle_mb), sizes,
             r.answer or "-", str(places.setdefault(where, len(places) + 1)))
        )  # fmt: skip
    if not rows:
        return f"{MEASURED}None yet.\n"
    listed = "\n".join(f"{number}. {where}" for where, number in places.items())
    return f"{MEASURED}{table(heads, rows)}\n{listed}\n"


def other(types: Iterable[Outcome]) -> str:
    """A row for each type."""
    return table(
        ("model_type", "", "why"), [(f"`{t.model_type}`", t.result, t.reason) for t in types]
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(_cell(text) for text in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


if __name__ == "__main__":
    main()
