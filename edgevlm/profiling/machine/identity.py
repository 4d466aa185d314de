"""The machine that this process runs on."""

from __future__ import annotations

import os
import platform
import sys

from edgevlm.libraries import memory_bytes, processor_name
from edgevlm.profiling.sections import Machine


def machine() -> Machine:
    """System, processor, cores and memory."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    # What follows the second number names a build, which tells a reader nothing.
    release = ".".join(platform.release().split(".")[:2])
    system = f"{platform.system()} {release}"
    return Machine(system, platform.machine(), processor_name(), cores, memory_bytes())
