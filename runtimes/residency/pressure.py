"""Memory that is short, as Linux tells it: time that somebody lost waiting for it (PSI).

Source: Documentation/accounting/psi.rst of Linux, "Monitoring for pressure thresholds".
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

# A tenth of two seconds; a window of whole two seconds is what every user may ask for.
TRIGGER = b"some 200000 2000000\n"
SYSTEM = Path("/proc/pressure/memory")


def watch(short: Callable[[], None]) -> bool:
    """Call `short` once, from a thread of its own, when memory gets short.

    Who waits is the process's own group (cgroup v2) where that is told, else anybody.

    Returns:
        Whether the system tells it.
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
        if events[0][1] & select.POLLPRI:  # else the group is gone
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
