"""What `edgevlm.profiling.measure` notes and the other modules turn into a profile.

Times are of `time.perf_counter`, in seconds; memory is (time, resident bytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.measures import OperatorReport
from edgevlm.profiling.machine.sensors import Reading
from edgevlm.profiling.recording import TimedCall
from edgevlm.profiling.sections import SustainedSample, TextQuestion
from edgevlm.runtimes.engine import Key
from edgevlm.runtimes.loops.answers import Answer
from edgevlm.runtimes.residency.timings import Timings


@dataclass(frozen=True)
class TimedAnswer:
    """One answer, with its calls and memory samples."""

    answer: Answer
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
    question: TextQuestion
    bandwidth_bytes_per_s: float | None
    session: Session
    budget_bytes: int | None
    timings: Timings | None
    operators: OperatorReport | str
    compile_ms: Mapping[str, float | None]
