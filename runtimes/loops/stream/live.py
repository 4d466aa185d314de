"""A stream as `api.Model.stream` gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from edgevlm.runtimes.loops.stream.events import Event
from edgevlm.runtimes.loops.stream.stream import Stream


class LiveStream:
    """The events of a stream: iterate over it, in one thread; `ask` and `stop` from any."""

    def __init__(self, stream: Stream, alone: Callable[[], AbstractContextManager[None]]) -> None:
        self._stream, self._alone = stream, alone

    def __iter__(self) -> Iterator[Event]:
        """The events, until the source ends."""
        with self._alone():
            yield from self._stream.events()

    def ask(self, prompt: str) -> None:
        """Ask a question; its answer is an event."""
        self._stream.ask(prompt)

    def stop(self) -> None:
        """End the stream: frames that wait are still seen."""
        self._stream.stop()
