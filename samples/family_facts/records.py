"""Measured exports at true size: docs/families.jsonl, a line each (`Record`), in any order.

A later line replaces an earlier one of the same preset, target, scheme and tokens.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parents[2] / "docs" / "families.jsonl"


@dataclass(frozen=True)
class Record:
    """A measured export at true size; MB are 10^6 bytes, null is not measured.

    Attributes:
        preset: Name in samples/make_checkpoint.py.
        target: As for `--target`.
        scheme: As for `--quantize`.
        tokens: As for `--tokens`; null without.
        seconds: Wall time of `edgevlm export`, its verification included.
        peak_mb: Peak resident memory of the export.
        checkpoint_mb: The checkpoint's weight files.
        bundle_mb: All files of the bundle.
        planned_bytes: `weights_bytes` of `edgevlm plan --json`.
        written_bytes: The same of the bundle's files, as `edgevlm inspect --json` says.
        answer: What `edgevlm run` does under a memory budget of half the bundle's weights, in a few
            words, such as `16 tokens at 5.7 tokens/s, peak 451 MB`.
        machine: Processor, cores and memory.
        threads: Of the export.
        date: YYYY-MM-DD.
    """

    preset: str
    target: str
    scheme: str
    seconds: float | None
    peak_mb: float | None
    checkpoint_mb: float | None
    bundle_mb: float | None
    planned_bytes: int | None
    written_bytes: int | None
    answer: str | None
    machine: str
    threads: int
    date: str
    tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse what would read as a measurement and is none."""
        numbers = (self.seconds, self.peak_mb, self.checkpoint_mb, self.bundle_mb,
                   self.planned_bytes, self.written_bytes, self.tokens)  # fmt: skip
        if any(n is not None and (not isinstance(n, int | float) or n <= 0) for n in numbers):
            raise ValueError(f"{self.preset}: a measured number is above 0, others are null")
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", self.date):
            raise ValueError(f"{self.preset}: got date '{self.date}', expected YYYY-MM-DD")

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What a later line replaces."""
        return self.preset, self.target, self.scheme, self.tokens or 0


def read_records(path: Path = RECORDS) -> list[Record]:
    """The measured exports, ordered by preset, target, scheme and tokens.

    Raises:
        ValueError: Naming the line that is no record.
    """
    records = dict[tuple[str, str, str, int], Record]()
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        document: dict[str, Any] = json.loads(line)
        unknown = set(document) - {field.name for field in fields(Record)}
        if unknown:
            raise ValueError(f"{path.name}:{number}: unknown keys {sorted(unknown)}")
        try:
            record = Record(**document)
        except (TypeError, ValueError) as cause:
            raise ValueError(f"{path.name}:{number}: {cause}") from cause
        records[record.key] = record
    return [records[key] for key in sorted(records)]
