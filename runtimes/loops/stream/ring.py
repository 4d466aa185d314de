"""Frames that wait between the thread that decodes them and the one that takes them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgevlm.errors import InputError


@dataclass(frozen=True)
class Frames:
    """The frames of a view: their times from the beginning of the stream, and the pictures."""

    seconds: tuple[float, ...]
    pictures: Sequence[Any]


class Ring:
    """A bounded queue.

    Args:
        size: Most entries that wait.
        drops: What happens to one more: the oldest that waits is dropped, or the producer waits.

    Attributes:
        dropped: Frames that were dropped, each of a view's counted.
    """

    def __init__(self, size: int, drops: bool) -> None:
        self.size, self.drops, self.dropped = size, drops, 0
        self._waiting: deque[Frames] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: InputError | None = None

    def put(self, frames: Frames) -> bool:
        """Add an entry; False once the ring is closed."""
        with self._changed:
            while not (self.drops or self._closed) and len(self._waiting) >= self.size:
                self._changed.wait()
            if self._closed:
                return False
            if len(self._waiting) >= self.size:
                self.dropped += len(self._waiting.popleft().seconds)
            self._waiting.append(frames)
            self._changed.notify_all()
            return True

    def take(self, timeout: float) -> Frames | None:
        """The oldest entry; None if none came in so many seconds, or `ended`."""
        until = time.monotonic() + timeout
        with self._changed:
            while not self._waiting and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            frames = self._waiting.popleft() if self._waiting else None
            self._changed.notify_all()
            return frames

    def close(self, error: InputError | None = None) -> None:
        """Nothing more comes; with what ended it, if it was an error. The first close counts."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether it is closed and empty."""
        with self._changed:
            return self._closed and not self._waiting

    @property
    def closed(self) -> bool:
        """Whether nothing more comes."""
        return self._closed

    @property
    def error(self) -> InputError | None:
        """What ended it."""
        return self._error
