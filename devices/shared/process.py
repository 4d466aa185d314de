"""A command that connects to a device: killed after its use, its last messages kept."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from edgevlm.devices.shared.contract import Step, one_line


@contextmanager
def running(
    argv: Sequence[str], stdin: int = subprocess.DEVNULL
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A process and the file of its stderr; it is killed at the end of the body."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=errors)
        try:
            yield process, errors
        finally:
            if process.poll() is None:
                process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            process.wait()


def errors_of(errors: IO[bytes]) -> str:
    """The end of what a process wrote to its stderr."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - 20_000))
    return errors.read().decode("utf-8", "replace")


def last_line(errors: str) -> str:
    """The last line that is not empty."""
    lines = [line for line in errors.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else ""


def meter(label: str, size: int, progress: Step) -> Callable[[int], None]:
    """A function that counts sent bytes, and reports them every two seconds."""
    done, reported = 0, time.monotonic()

    def sent(count: int) -> None:
        nonlocal done, reported
        done += count
        if time.monotonic() - reported >= 2:
            reported = time.monotonic()
            progress(f"{label}: {done / 1e6:,.1f} of {size / 1e6:,.1f} MB")

    return sent
