"""Memory pressure as Linux reports it: time that tasks were stalled for memory (PSI).

Source: Documentation/accounting/psi.rst of Linux, "Monitoring for pressure thresholds".
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

# 0.2 s of 2 s; windows that are multiples of 2 s need no privileges.
TRIGGER = b"some 200000 2000000\n"
SYSTEM = Path("/proc/pressure/memory")


def watch(short: Callable[[], None]) -> bool:
    """Call `short` once, from a thread of its own, when memory gets short.

    The stalls are those of the process's own group (cgroup v2) if known, else of the system.

    Returns:
        Whether the system reports memory pressure.
    """
    try:
        file = os.open(_file(), os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        os.write(file, TRIGGER)
    except OSError:
        os.close(file)
        return False

    def wait() -> None:
        poll = select.poll()
        poll.register(file, select.POLLPRI)
        events = poll.poll()
        os.close(file)
        if events[0][1] & select.POLLPRI:  # else the group was removed
            short()

    threading.Thread(target=wait, daemon=True).start()
    return True


def _file() -> Path:
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return SYSTEM
    for group in groups:
        number, _, path = group.split(":", 2)
        own = Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.pressure"
        if number == "0" and path != "/" and own.is_file():
            return own
    return SYSTEM
