"""What `edgevlm.profiling.measure` notes and the other modules turn into a profile.

Times are of `time.perf_counter`, in seconds; memory is (time, resident bytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.measures import OperatorReport
from edgevlm.errors import InputError
from edgevlm.profiling.machine.sensors import Reading
from edgevlm.profiling.recording import TimedCall
from edgevlm.profiling.sections import (
    EmbeddingAnswer,
    EmbeddingQuestion,
    SustainedSample,
    TextAnswer,
    TextQuestion,
    VideoAnswer,
    VideoQuestion,
)
from edgevlm.recipe import MOST_TOKENS
from edgevlm.runtimes import values
from edgevlm.runtimes.engine import Key
from edgevlm.runtimes.residency.timings import Timings

PHOTO = Path(__file__).parents[1] / "photos" / "scene.png"
MOST_RUNS = 10**6  # answers that anybody waits for
Null = tuple[str, bool, str]  # path, whether the value is null, reason


@dataclass(frozen=True)
class ProfileRequest:
    """What to measure with.

    Attributes:
        image: An image; a clip repeats it for each frame. None takes a packaged one.
        prompt: The question; None takes one of ours. Of a bundle with embeddings the text to
            encode; None encodes the image.
        runs: Timed answers.
        tokens_generated: Tokens of each answer of text; stop tokens do not end it.
        minutes: Further answers without a pause; 0 is none.
    """

    image: Path | None = None
    prompt: str | None = None
    runs: int = 10
    tokens_generated: int = 16
    minutes: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a request that measures nothing."""
        values.whole("runs", self.runs, least=1, most=MOST_RUNS)
        if values.whole("tokens_generated", self.tokens_generated, most=MOST_TOKENS) < 2:
            raise InputError(
                f"tokens_generated must be at least 2, got {self.tokens_generated}: the first token"
                " is part of prefill"
            )
        values.real("minutes", self.minutes, most=1e6)
        if self.image is not None:
            values.path("image", self.image)
        if self.prompt is not None:
            values.text("the prompt", self.prompt)

    @property
    def picture(self) -> Path:
        """The image, or the packaged one."""
        return self.image or PHOTO


@dataclass(frozen=True)
class Sections:
    """The parts of a profile that belong to its type of answer; the others' are None."""

    text: TextAnswer | None
    embedding: EmbeddingAnswer | None
    ttft_ms: float | None
    decode_tokens_per_s: float | None
    video: VideoAnswer | None = None


@dataclass(frozen=True)
class TimedAnswer:
    """One answer, of the type of the bundle's kind, with its calls and memory samples."""

    answer: Any
    start: float
    end: float
    calls: tuple[TimedCall, ...]
    memory: tuple[tuple[float, int], ...]

    @property
    def ms(self) -> float:
        """From the decoded image to the last token."""
        return (self.end - self.start) * 1e3


@dataclass(frozen=True)
class Opening:
    """All functions unloaded, then loaded and run once each; `resident` is the bytes of each."""

    start: float
    end: float
    evictions: tuple[TimedCall, ...]
    calls: tuple[TimedCall, ...]
    memory: tuple[tuple[float, int], ...]
    resident: Mapping[Key, int]


@dataclass(frozen=True)
class Session:
    """All answers of a profile.

    `sensors` were read before all, around the timed answers, and after all. `rail_joules` is of the
    timed answers. `openings` is empty where blocks are loaded within the answers.
    """

    warm_ups: tuple[TimedAnswer, ...]
    answers: tuple[TimedAnswer, ...]
    sustained: tuple[SustainedSample, ...] | None
    openings: tuple[Opening, ...]
    peak_rss_bytes: int
    peak_footprint_bytes: int | None
    sensors: tuple[Reading, Reading, Reading, Reading]
    rail_joules: float | None


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured.

    `timings` has a value where blocks are loaded and evicted within a budget. `operators` may be a
    reason instead. `compile_ms` is by block.
    """

    bundle: Bundle
    engine: str
    engine_version: str
    threads: int | None
    question: TextQuestion | EmbeddingQuestion | VideoQuestion
    bandwidth_bytes_per_s: float | None
    session: Session
    budget_bytes: int | None
    timings: Timings | None
    operators: OperatorReport | str
    compile_ms: Mapping[str, float | None]
