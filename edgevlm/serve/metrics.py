"""Counters of a server in Prometheus's text format, version 0.0.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from edgevlm.runtimes.residency.memory import resident_bytes

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Histogram:
    """Counts of values up to each bound."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    seen: int = 0

    def add(self, value: float) -> None:
        """One more value."""
        self.counts = self.counts or [0] * len(self.bounds)
        self.counts = [n + (value <= x) for n, x in zip(self.counts, self.bounds, strict=True)]
        self.total, self.seen = self.total + value, self.seen + 1

    def lines(self, name: str) -> list[str]:
        """Its lines under a name."""
        counts = self.counts or [0] * len(self.bounds)
        pairs = zip(self.bounds, counts, strict=True)
        return [
            f"# TYPE {name} histogram",
            *(f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in pairs),
            f'{name}_bucket{{le="+Inf"}} {self.seen}',
            f"{name}_sum {self.total:.6f}",
            f"{name}_count {self.seen}",
        ]


class Metrics:
    """What a server counts; safe for several threads."""

    def __init__(self) -> None:
        self.answers = Counter[int]()  # by HTTP status; 499 is a client that left
        self.tokens = Counter[str]()  # prompt, visual, completion
        self.first_token_s = Histogram((0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60))
        self.tokens_per_s = Histogram((1, 2, 5, 10, 20, 50, 100, 200, 500, 1000))
        self.lock = Lock()

    def text(self, queued: int) -> str:
        """All of it."""
        with self.lock:
            lines = ["# TYPE edgevlm_requests_total counter"]
            lines += [f'edgevlm_requests_total{{status="{status}"}} {count}'
                      for status, count in sorted(self.answers.items())]  # fmt: skip
            lines += ["# TYPE edgevlm_tokens_total counter"]
            lines += [f'edgevlm_tokens_total{{kind="{kind}"}} {count}'
                      for kind, count in sorted(self.tokens.items())]  # fmt: skip
            lines += self.first_token_s.lines("edgevlm_time_to_first_token_seconds")
            lines += self.tokens_per_s.lines("edgevlm_tokens_per_second")
        lines += ["# TYPE edgevlm_queue_length gauge", f"edgevlm_queue_length {queued}"]
        resident = resident_bytes()
        lines += ["# TYPE edgevlm_resident_bytes gauge", f"edgevlm_resident_bytes {resident}"]
        return "\n".join(lines) + "\n"
