"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

import ctypes
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

# mallopt: blocks from this size on are mapped, so that free() returns them to the system.
_M_MMAP_THRESHOLD, _THRESHOLD = -3, 256 * 1024


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status("VmRSS") if Path("/proc/self/status").is_file() else peak_rss_bytes()


def peak_rss_bytes() -> int:
    """High-water mark of this process's resident memory.

    On Linux from the kernel's VmHWM: ru_maxrss also counts the program that started this one.
    """
    if Path("/proc/self/status").is_file():
        return _status("VmHWM")
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def footprint_bytes() -> int | None:
    """Private memory, the figure mobile systems use to kill apps; None if it is unknown.

    The larger of anonymous memory and dirty private pages.
    """
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return None
    sizes = {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.M)}
    return max(sizes["Anonymous"], sizes["Private_Dirty"])


def forget_peak() -> None:
    """Reset the high-water mark, where the kernel allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def return_freed() -> None:
    """Return freed memory to the system at once, not when the allocator chooses."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """glibc, set to map large blocks; None for another C library."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        return None
    library.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
    return library


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    line = next(x for x in text.splitlines() if x.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
