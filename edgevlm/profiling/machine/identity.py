"""The machine that this process runs on."""

from __future__ import annotations

import os
import platform

from edgevlm.libraries import processor_name, processors
from edgevlm.profiling.sections import Machine


def machine() -> Machine:
    """System, processor, cores and memory."""
    # What follows the second number names a build, which tells a reader nothing.
    release = ".".join(platform.release().split(".")[:2])
    system = f"{platform.system()} {release}"
    return Machine(system, platform.machine(), processor_name(), processors(), _memory_bytes())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None
