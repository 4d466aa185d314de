"""What a stream says: dataclasses whose fields are JSON documents.

Seconds are those of the stream, from its first frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MINUTE = 60.0


@dataclass(frozen=True)
class FrameSeen:
    """A view of the stream is in the cache.

    `frames` were seen so far, and `dropped` were not; `tokens` of this one were kept, of which
    `changed` is the share of its patches that changed; `cached` rows are in the cache, and `ms` is
    what it took.
    """

    seconds: float
    frames: int
    dropped: int
    tokens: int
    changed: float
    cached: int
    ms: float
    event: str = "frame"

    @property
    def line(self) -> str:
        """Its figures."""
        return (
            f"{self.seconds:.1f} s: frame {self.frames}, {self.tokens} tokens,"
            f" {self.changed:.0%} changed, {self.cached} rows, {self.dropped} dropped"
        )


@dataclass(frozen=True)
class SceneChange:
    """The frame before shows something else: more than `threshold` of the patches changed."""

    seconds: float
    changed: float
    threshold: float
    event: str = "scene_change"

    @property
    def line(self) -> str:
        """Its figures."""
        return f"{self.seconds:.1f} s: another scene, {self.changed:.0%} of the patches changed"


@dataclass(frozen=True)
class StreamAnswer:
    """The answer to a question about what the cache holds.

    `rows` are those of the question; `first_token_ms` goes from the question on. `stopped` is as in
    `answers.Answer`.
    """

    seconds: float
    prompt: str
    text: str
    stopped: str
    rows: int
    tokens: int
    first_token_ms: float
    frames: int
    event: str = "answer"

    @property
    def line(self) -> str:
        """Its figures; its text was printed as it came."""
        return f"{self.seconds:.1f} s: first token {self.first_token_ms:.0f} ms"


@dataclass(frozen=True)
class Refused:
    """A question that cannot be answered, and why; the stream goes on."""

    seconds: float
    prompt: str
    error: str
    event: str = "refused"

    @property
    def line(self) -> str:
        """Why."""
        return self.error


@dataclass(frozen=True)
class End:
    """The end of a stream, with its figures.

    `evicted` frames were taken out of the cache; `why` is the error that ended the source, or
    empty. What no sensor gives is None, with the reason in `not_measured`.
    """

    seconds: float
    wall_s: float
    frames: int
    dropped: int
    tokens: int
    evicted: int
    scene_changes: int
    answers: int
    refused: int
    frames_per_minute: float
    tokens_per_minute: float
    peak_rss_bytes: int
    why: str
    joules: float | None = None
    temperature_c: float | None = None
    not_measured: dict[str, Any] = field(default_factory=dict)
    event: str = "end"

    @property
    def line(self) -> str:
        """Its figures."""
        joules = "" if self.joules is None else f"; {self.joules:.0f} J"
        warm = "" if self.temperature_c is None else f"; {self.temperature_c:.0f} °C"
        return (
            f"end after {self.seconds:.0f} s of stream in {self.wall_s:.0f} s: {self.frames} frames"
            f" ({self.dropped} dropped, {self.evicted} evicted), {self.answers} answers;"
            f" {self.frames_per_minute:.0f} frames and {self.tokens_per_minute:.0f} tokens a minute"
            + joules
            + warm
            + (f"; {self.why}" if self.why else "")
        )


Event = FrameSeen | SceneChange | StreamAnswer | Refused | End
