"""Options that several commands share, and the two ways in which a command speaks."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from edgevlm.bundle.documents import to_document
from edgevlm.recipe import Recipe, parse_bytes, parse_tiles
from edgevlm.units import megabytes as megabytes  # of all commands

_DEFAULT = Recipe()

ModelArgument = Annotated[str, typer.Argument(help="Hub id, checkpoint folder, or 'embedded'.")]
BundleArgument = Annotated[str, typer.Argument(help="A bundle that `export` wrote.")]
Target = Annotated[str, typer.Option(help="Target, see `edgevlm targets`.")]
Revision = Annotated[str | None, typer.Option(help="Commit or tag of a hub id.")]
Tokens = Annotated[
    int | None, typer.Option(help="Visual tokens kept per image or clip; all if not given.")
]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="NAME[@SITE][:key=value,…], see `edgevlm methods`."),
]
Quantize = Annotated[str, typer.Option(help="SCHEME[,STAGE=SCHEME,…]; 'none' is float32.")]
Context = Annotated[int | None, typer.Option(help="Cache length in tokens.")]
Frames = Annotated[int, typer.Option(help="Frames of a clip; 1 means still images.")]
Tiles = Annotated[str, typer.Option(help="Tile grid of an image, ROWSxCOLUMNS.")]
BlockSize = Annotated[str, typer.Option(help="Largest block, in float32 weights: 64MB.")]
Chunk = Annotated[int | None, typer.Option(help="Tokens per prefill call; chosen if not given.")]
Calibrate = Annotated[
    str | None,
    typer.Option(help="For static schemes: N scenes, a folder of pictures, or a .jsonl file."),
]
Backend = Annotated[
    str | None, typer.Option(help="ExecuTorch: xnnpack, or ahead of time coreml or vulkan.")
]
Speculate = Annotated[
    int, typer.Option(help="Tokens that one call checks, for `run --draft`; 0 is none, 8 is usual.")
]
Json = Annotated[bool, typer.Option("--json", help="Last stdout line is one JSON document.")]
Force = Annotated[bool, typer.Option(help="Replace a bundle that is there.")]


def recipe(
    model: str,
    revision: str | None,
    target: str,
    tokens: int | None,
    method: list[str] | None,
    quantize: str,
    context: int | None,
    frames: int,
    tiles: str,
    block_size: str,
    chunk: int | None,
    calibrate: str | None,
    backend: str | None,
    speculate: int,
) -> Recipe:
    """The recipe that the options spell."""
    return Recipe(
        model=model,
        revision=revision,
        target=target,
        tokens=tokens,
        methods=tuple(method or ()),
        quantize=quantize,
        context=context,
        frames=frames,
        tiles=parse_tiles(tiles),
        block_size_bytes=parse_bytes(block_size),
        chunk=chunk,
        calibrate=calibrate,
        backend=backend,
        speculate=speculate,
    )


class Defaults:
    """Defaults of the recipe in the form that options take."""

    model, target, quantize, frames = (
        _DEFAULT.model,
        _DEFAULT.target,
        _DEFAULT.quantize,
        _DEFAULT.frames,
    )
    tiles = f"{_DEFAULT.tiles[0]}x{_DEFAULT.tiles[1]}"
    block_size = f"{_DEFAULT.block_size_bytes // 10**6}MB"


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def answer(document: Any, text: str, as_json: bool) -> None:
    """The result: `text` on stdout for a person, or one JSON line for a machine."""
    print(json.dumps(to_document(document), ensure_ascii=False) if as_json else text, flush=True)


@contextmanager
def progress() -> Iterator[Any]:
    """Steps as they begin: a spinner on a terminal, a line each elsewhere."""
    console, started = Console(stderr=True), time.perf_counter()
    if not console.is_terminal:
        yield lambda step: say(f"[{time.perf_counter() - started:6.1f} s] {printable(step)}")
        return
    with console.status("…") as status:
        # A step may have words of a device, which are no markup and steer no terminal.
        yield lambda step: status.update(escape(f"{printable(step)} …"))


def printable(text: str) -> str:
    """A text without characters that would steer a terminal: a name may come from a file."""
    return "".join(c if c.isprintable() else "?" for c in text)


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Plain columns, numbers to the right."""
    cells = [head, *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    right = [
        all(not isinstance(row[i], str) for row in rows) and bool(rows) for i in range(len(head))
    ]
    lines = [
        "  ".join(
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
