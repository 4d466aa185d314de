"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

import ctypes
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

# mallopt: blocks from this size on are mapped, so that freeing one gives it back.
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
    """What platforms kill for: anonymous memory and changed private pages; None where not told."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return None
    sizes = {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.M)}
    return max(sizes["Anonymous"], sizes["Private_Dirty"])


def forget_peak() -> None:
    """Begin a new high-water mark, where the kernel allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def return_freed() -> None:
    """Give freed memory back to the system at once, not when the allocator sees fit."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library, told to map large blocks; None where it is another one."""
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
