"""The machine that this process runs on."""

from __future__ import annotations

import platform

from edgevlm.libraries import memory_bytes, processor_name, processors
from edgevlm.profiling.sections import Machine


def machine() -> Machine:
    """System, processor, cores and memory."""
    # What follows the second number names a build, which tells a reader nothing.
    release = ".".join(platform.release().split(".")[:2])
    system = f"{platform.system()} {release}"
    return Machine(system, platform.machine(), processor_name(), processors(), memory_bytes())
