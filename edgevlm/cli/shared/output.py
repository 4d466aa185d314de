"""How commands speak: human text on stderr, the result on stdout, progress in between."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from edgevlm.bundle.documents import to_document

Step = Callable[[str], None]


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def answer(document: Any, text: str, as_json: bool) -> None:
    """The result: `text` on stdout for a person, or one JSON line for a machine."""
    print(json.dumps(to_document(document), ensure_ascii=False) if as_json else text, flush=True)


def on_terminal() -> bool:
    """Whether a person sees stderr as it is written."""
    return Console(stderr=True).is_terminal


@contextmanager
def progress() -> Iterator[Step]:
    """Steps as they begin: a spinner on a terminal, a line each elsewhere."""
    console, started = Console(stderr=True), time.perf_counter()
    if not console.is_terminal:
        yield lambda step: say(f"[{time.perf_counter() - started:6.1f} s] {printable(step)}")
        return
    with console.status("…") as status:
        # A step may have words of a device, which are no markup and steer no terminal.
        yield lambda step: status.update(escape(f"{printable(step)} …"))


def every(seconds: float, step: Step) -> Step:
    """`step` at most once in so many seconds, for a log; on a terminal all lines go through."""
    if on_terminal():
        return step
    last = time.perf_counter() - seconds

    def rarely(text: str) -> None:
        nonlocal last
        if time.perf_counter() - last >= seconds:
            last = time.perf_counter()
            step(text)

    return rarely


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
