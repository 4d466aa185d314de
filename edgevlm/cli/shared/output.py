"""Output of commands: messages and progress on stderr, the result on stdout."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.markup import escape

from edgevlm.bundle.documents import to_document
from edgevlm.errors import shortened
from edgevlm.runtimes.loops.contract import Answered

Step = Callable[[str], None]
PATIENCE_S = 2.0  # what takes longer says that it goes on


def say(text: str, end: str = "\n") -> None:
    """Print a line on stderr. One that is closed, full or without a reader stops no command."""
    if sys.stderr is not None:  # `print` would take stdout
        with suppress(OSError, ValueError):
            print(text, end=end, file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Print an error on stderr: one line without control characters, as a name may be a file's."""
    say(f"edgevlm: {shortened(printable(' '.join(message.split())))}")


def answer(document: Any, text: str, as_json: bool) -> None:
    """Print the result on stdout: `text`, or the document as one JSON line."""
    if as_json:
        text = json.dumps(to_document(document), ensure_ascii=False)
        try:
            text.encode(sys.stdout.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):  # JSON can spell every letter in ASCII
            text = json.dumps(to_document(document))
    print(text, flush=True)


def show(answers: Iterable[Answered], as_json: bool) -> bool:
    """Print each answer, and its figures on stderr; whether there was any."""
    shown = False
    for answered in answers:
        answer(answered, answered.shown, as_json)
        say(answered.summary)
        shown = True
    return shown


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
    return Console(stderr=True).is_terminal


@contextmanager
def progress() -> Iterator[Step]:
    """A function that reports steps: a spinner on a terminal, else a line for each."""
    console, started = Console(stderr=True), time.perf_counter()
    if not console.is_terminal:
        yield lambda step: say(f"[{time.perf_counter() - started:6.1f} s] {printable(step)}")
        return
    with console.status("…") as status:
        # A step may have text from a device, which must not act as markup or control characters.
        yield lambda step: status.update(escape(f"{printable(step)} …"))


@contextmanager
def waiting(text: str, seconds: float = PATIENCE_S) -> Iterator[None]:
    """Say what is done inside the body, once that has taken so many seconds."""
    timer = threading.Timer(seconds, say, [f"[{seconds:6.1f} s] {text} …"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def every(seconds: float, step: Step) -> Step:
    """`step` limited to one call in so many seconds, for logs; not limited on a terminal."""
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
    """A text without control characters, as a name may come from a file."""
    return "".join(c if c.isprintable() else "?" for c in text)


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Rows as plain columns, numbers aligned right."""
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
