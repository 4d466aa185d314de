"""An environment for each peer whose packages the driver's does not have.

It sees the driver's packages behind its own, by a .pth file, so that exporters find torch. One that
is there and has what a peer checks for is left as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from _measure import say

INSTALL_S = 3600  # llama.cpp compiles


class Skipped(Exception):
    """Why a peer is not measured."""


def environment(name: str, peer: ModuleType, work: Path) -> Path:
    """The Python that runs a peer.

    Raises:
        Skipped: If its packages cannot be installed.
    """
    if not peer.PACKAGES:
        python = Path(sys.executable)
        _check(python, peer)
        return python
    folder = work / "environments" / name
    python = folder / "bin" / "python"
    try:
        _check(python, peer)
        return python
    except Skipped:
        pass
    say(f"install {', '.join(peer.PACKAGES)}")
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(python), "-m", "pip", "install", "-q", *peer.PACKAGES], peer.SETTINGS)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    behind = folder / "lib" / version / "site-packages" / "driver.pth"
    behind.write_text(sysconfig.get_paths()["purelib"] + "\n")
    _check(python, peer)
    return python


def _check(python: Path, peer: ModuleType) -> None:
    if not python.exists():
        raise Skipped("no environment")
    _run([str(python), "-c", f"import {peer.CHECK}"])


def _run(command: list[str], settings: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(settings or {})},
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise Skipped(str(cause)) from cause
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Skipped(next((x for x in reversed(lines) if "rror" in x), lines[-1]).strip()[:200])
