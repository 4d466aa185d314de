"""Which frames of a source count, and which of them wait, are dropped, or hold up the source."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.stream import source
from edgevlm.runtimes.loops.stream.ring import Frames, Ring


def times(seconds, fps):
    return [round(at, 3) for at, _ in source.picked(((s, None) for s in seconds), fps)]


def test_the_first_frame_of_each_interval_counts():
    at_25 = np.arange(100) / 25
    assert times(at_25, 1) == [0, 1, 2, 3]
    assert times(at_25, 2) == [0, 0.52, 1, 1.52, 2, 2.52, 3, 3.52]
    assert times(at_25 + 7.3, 1) == [0, 1, 2, 3]  # a clock that does not begin at 0
    assert times([0, 0.9, 1.2, 1.9, 2.1, 5.7, 5.9, 6], 1) == [0, 1.2, 2.1, 5.7, 6]
    assert times([0, 1, 2], 30) == [0, 1, 2]


def test_a_paced_clock_that_jumps_by_years_is_not_waited_for(monkeypatch):
    slept, stamps = [], [0, 1, 2, 1e12, 1e12 + 1]
    monkeypatch.setattr(source.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(source.time, "sleep", slept.append)
    monkeypatch.setattr(source, "_decoded", lambda _: ((at, lambda: "picture") for at in stamps))
    ring = Ring(10, drops=False)
    source.start("clip.mp4", ring, 1.0, True, 1, lambda picture: picture).join(10)
    assert slept == [1, 2, 1]
    assert ring.error is None
    assert [ring.take(0).seconds[0] for _ in range(5)] == stamps


def test_a_clock_that_begins_again_goes_on():
    assert times([0, 1, 2, 3, 0, 1, 2], 1) == [0, 1, 2, 3, 4, 5]


def test_of_a_live_source_the_oldest_that_wait_are_dropped():
    ring = Ring(2, drops=True)
    for second in range(5):
        assert ring.put(Frames((second,), ["picture"]))
    assert ring.dropped == 3
    assert [ring.take(0).seconds for _ in range(2)] == [(3,), (4,)]
    assert ring.take(0.01) is None
    ring.close()
    assert ring.ended
    assert not ring.put(Frames((9,), ["picture"]))


def test_another_source_waits():
    ring, put = Ring(1, drops=False), []

    def work():
        for second in range(4):
            put.append(ring.put(Frames((second,), ["picture"])))

    thread = threading.Thread(target=work)
    thread.start()
    assert [ring.take(5).seconds for _ in range(2)] == [(0,), (1,)]
    ring.close()  # what still waits to be put is not
    thread.join(5)
    assert not thread.is_alive()
    assert ring.dropped == 0
    assert put[:2] == [True, True]


def test_what_ended_a_source_is_kept():
    ring = Ring(1, drops=False)
    ring.close(InputError("first"))
    ring.close(InputError("second"))
    assert str(ring.error) == "first"


@pytest.mark.parametrize(
    ("given", "pace", "live"),
    [
        ("clip.mp4", False, False), ("clip.mp4", True, True), ("-", False, True),
        ("/dev/video0", False, True), ("rtsp://host/x", False, True), (b"bytes", False, False),
        ("HTTP://host/x", False, True), ([], True, False),
    ],
)  # fmt: skip
def test_what_comes_by_a_clock_is_live(given, pace, live):
    assert source.is_live(given, pace) is live
