"""Memory that gets short, as a file of the kernel tells it."""

from __future__ import annotations

import os
import select
import sys
import threading
from pathlib import Path

import pytest

from edgevlm.runtimes.residency import pressure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PSI is Linux's")


class Poll:
    """A poll over a file that no kernel writes to: it ends when the test says so."""

    def __init__(self, event):
        self.event, self.ready, self.registered = event, threading.Event(), []

    def register(self, file, events):
        self.registered.append((file, events))

    def poll(self):
        assert self.ready.wait(30)
        return [(self.registered[0][0], self.event)]


@pytest.fixture
def psi(tmp_path, monkeypatch):
    """A file in the place of the kernel's, and the poll that waits on it."""
    file = tmp_path / "memory.pressure"
    file.write_bytes(b"")
    monkeypatch.setattr(pressure, "_file", lambda: file)

    def polled(event):
        poll = Poll(event)
        monkeypatch.setattr(select, "poll", lambda: poll)
        return poll

    return file, polled


def test_who_watches_is_called_once_when_memory_gets_short(psi):
    file, polled = psi
    poll, called, calls = polled(select.POLLPRI), threading.Event(), []
    assert pressure.watch(lambda: (calls.append(1), called.set()))
    assert file.read_bytes() == pressure.TRIGGER
    assert not called.wait(0.05)
    poll.ready.set()
    assert called.wait(30)
    ((descriptor, events),) = poll.registered
    assert (calls, events) == ([1], select.POLLPRI)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)  # closed before the call


def test_who_watches_a_group_that_goes_is_not_called(psi, monkeypatch):
    _, polled = psi
    poll, started = polled(select.POLLERR), []
    monkeypatch.setattr(threading, "Thread", kept_thread(started))
    assert pressure.watch(lambda: pytest.fail("memory is not short"))
    poll.ready.set()
    started[0].join(30)
    assert not started[0].is_alive()


def kept_thread(started):
    """`threading.Thread`, noting each one that is made."""

    class Kept(threading.Thread):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    return Kept


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(pressure, "_file", lambda: tmp_path / "nothing")
    assert not pressure.watch(lambda: None)


@pytest.mark.skipif(not Path("/proc/pressure/memory").exists(), reason="no PSI in this kernel")
def test_the_kernel_takes_the_trigger():
    try:
        os.close(os.open("/proc/pressure/memory", os.O_RDWR | os.O_NONBLOCK))
    except OSError as cause:
        pytest.skip(f"the file cannot be written here: {cause}")
    assert pressure.watch(lambda: None)
