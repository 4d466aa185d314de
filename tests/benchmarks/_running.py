"""A peer's process: started, asked, stopped between questions; its memory by the kernel's count."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _environments import Skipped
from peer._given import PROMPTS, Given

SCRIPT = Path(__file__).with_name("_process.py")
SAMPLE_S = 0.05


@dataclass(frozen=True)
class Form:
    """One form of one peer, and the Python that runs it."""

    peer: str
    variant: str
    precision: str
    says: str
    python: str

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.peer} {self.variant}"

    def command(self, given: Given, action: str) -> list[str]:
        """The process."""
        made = [self.python, str(SCRIPT), self.peer, self.variant, action]
        made += ["--model", given.model, "--work", str(given.work)]
        return [*made, "--threads", str(given.threads)]


class Running:
    """A process that serves; it is stopped (SIGSTOP) while it is not asked, so nothing spins."""

    def __init__(self, form: Form, given: Given) -> None:
        logs = given.folder("logs")
        self._log = logs / f"{form.peer}-{form.variant}.txt"
        self.started = time.perf_counter()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                form.command(given, "serve"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.pid = self._process.pid

    def open(self) -> dict[str, Any]:
        """Wait until the model is in memory."""
        return self._answer()

    def ask(self, **what: Any) -> dict[str, Any]:
        """One question; see `_process`."""
        assert self._process.stdin is not None
        os.kill(self.pid, signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as cause:
            raise Skipped(self._last_line()) from cause
        return self._answer()

    def end(self) -> None:
        """Stop for good."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Skipped(self._last_line())
        os.kill(self.pid, signal.SIGSTOP)
        made: dict[str, Any] = json.loads(line)
        return made

    def _last_line(self) -> str:
        self._process.wait()
        lines = self._log.read_text().strip().splitlines()
        return lines[-1][:200] if lines else f"exit status {self._process.returncode}"


@dataclass(frozen=True)
class Start:
    """From the start of a process to its first token."""

    ms: float
    resident_bytes: int  # high-water mark
    private_bytes: int | None  # highest sample; None where it was not sampled


def cold_start(form: Form, given: Given, sample: bool) -> Start:
    """A fresh process: open, one tile if it sees, the shorter prompt.

    `sample` reads smaps_rollup again and again, which takes time from the process.
    """
    running = Running(form, given)
    watch = _Watch(running.pid) if sample else None
    try:
        if running.open()["sees"]:
            running.ask(do="vision")
        running.ask(do="prefill", rows=PROMPTS[0])
        spent = (time.perf_counter() - running.started) * 1e3
        resident = _fields(Path(f"/proc/{running.pid}/status"))["VmHWM"]
        return Start(spent, resident, watch.end() if watch else None)
    finally:
        running.end()


class _Watch(threading.Thread):
    """The most private memory that any sample saw; it ends with the process."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._most, self._over = pid, 0, False
        self.start()

    def run(self) -> None:
        """Sample until it is over."""
        while not self._over:
            try:
                found = _fields(Path(f"/proc/{self._pid}/smaps_rollup"))
            except OSError:
                return
            size = max(found.get("Anonymous", 0), found.get("Private_Dirty", 0))
            self._most = max(self._most, size)
            time.sleep(SAMPLE_S)

    def end(self) -> int:
        """Bytes."""
        self._over = True
        self.join()
        return self._most


def _fields(path: Path) -> dict[str, int]:
    found = re.finditer(r"^(\w+):\s+(\d+) kB$", path.read_text(), re.M)
    return {m[1]: int(m[2]) * 1024 for m in found}
