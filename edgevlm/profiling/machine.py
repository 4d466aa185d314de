"""The machine that this process runs on."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from edgevlm.profiling.sections import Machine


def machine() -> Machine:
    """System, processor, cores and memory."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    # What follows the second number names a build, which tells a reader nothing.
    release = ".".join(platform.release().split(".")[:2])
    system = f"{platform.system()} {release}"
    return Machine(system, platform.machine(), _processor(), cores, _memory_bytes())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        board = Path("/proc/device-tree/model")  # ARM boards name no processor, but themselves
        if not names and board.is_file():
            names = [board.read_text("utf-8").strip("\0\n")]
    except (OSError, ValueError):
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None
