"""Memory that really gets short: a process that writes more than its group may have."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgevlm.runtimes.residency import pressure

GROUPS = Path("/sys/fs/cgroup/memory")  # cgroup v1: v2 would ask to turn the controller on
LIMIT, SIZE, SECONDS = 60_000_000, 200 << 20, 15
THRASH = """
import mmap, os, sys, time
group, path, size, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
open(f"{group}/cgroup.procs", "w").write(str(os.getpid()))
with open(path, "w+b") as file:
    file.truncate(size)
    pages, end = mmap.mmap(file.fileno(), 0), time.time() + seconds
    while time.time() < end:
        for at in range(0, size, 4096):
            pages[at] = 1
"""


@pytest.fixture
def group():
    """A group of processes with little memory."""
    folder = GROUPS / f"edgevlm-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError as cause:
        pytest.skip(f"no group with a limit of memory can be made: {cause}")
    yield folder
    folder.rmdir()


def test_who_watches_is_called_when_memory_is_short(group, tmp_path):
    called = threading.Event()
    if not pressure.watch(called.set):
        pytest.skip("this system does not tell its memory pressure")
    assert not called.wait(0.1)
    arguments = [group, tmp_path / "pages", SIZE, SECONDS]
    process = subprocess.Popen([sys.executable, "-c", THRASH, *map(str, arguments)])
    try:
        assert called.wait(SECONDS)
    finally:
        process.kill()
        process.wait()


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(pressure, "_file", lambda: tmp_path / "nothing")
    assert not pressure.watch(lambda: None)
