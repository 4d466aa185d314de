"""The command in a process of its own, and what counts as a good end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "edgevlm" / "photos" / "hand.jpg"
LIMIT_S, LONGEST_LINE = 60, 1200


@dataclass(frozen=True)
class Outcome:
    """`answered`, `refused`, or the name of a fault, with the line that says more."""

    kind: str
    line: str
    peak_bytes: int

    @property
    def good(self) -> bool:
        """Whether it is no fault."""
        return self.kind in ("answered", "refused")


def question(bundle: Path) -> list[str]:
    """Arguments that ask a bundle of the embedded model a question."""
    prompt = "Which digit does the hand show?"
    return ["run", str(bundle), "--image", str(PHOTO), "--prompt", prompt, "--threads", "1"]


def start(arguments: Sequence[str], cache: Path, around: Sequence[str] = ()) -> subprocess.Popen:
    """Start the command; `around` is a program that starts it in other surroundings."""
    code = "from edgevlm.cli import main; main()"
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*around, sys.executable, "-P", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def outcome_of(process: subprocess.Popen, limit_bytes: int | None = None) -> Outcome:
    """Wait for a process, no longer than a minute and until it takes too much memory."""
    with process:
        peak, end = 0, time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < end:
            peak = max(peak, _peak_bytes(process.pid))
            if limit_bytes is not None and peak > limit_bytes:
                break
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
        out, err = process.communicate()
    return judged(process.returncode, out, err, peak, limit_bytes)


def ask(bundle: Path, cache: Path, limit_bytes: int | None = None) -> Outcome:
    """Ask a bundle one question."""
    return outcome_of(start(question(bundle), cache), limit_bytes)


def judged(code: int, out: str, err: str, peak: int, limit: int | None) -> Outcome:
    """What counts as an end of what kind."""
    lines = [line for line in err.splitlines() if not line.startswith("[ ")]
    last = lines[-1] if lines else ""
    if limit is not None and peak > limit:
        return Outcome("memory", f"{peak // 10**6} MB", peak)
    if code < 0:
        kind = "hang" if code == -signal.SIGKILL else f"signal {-code}"
        return Outcome(kind, last, peak)
    if "Traceback" in err:
        return Outcome("traceback", last, peak)
    if code == 0 and out:
        return Outcome("answered", out.strip(), peak)
    good = code == 1 and len(lines) == 1 and last.startswith("edgevlm: ") and not out.strip()
    return Outcome("refused" if good and len(last) <= LONGEST_LINE else "untidy", err, peak)


def _peak_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0
