"""The profile: what was measured of a bundle on a machine, as one JSON document.

    {"schema_version": 3, "kind": "vlm", "device": "local", "engine": "onnxruntime", …}

These dataclasses are the schema; `profile.schema.json` beside this file is the same for programs in
other languages, and a test keeps them equal. A profile has the section of one type of answer:
`text` (generated tokens), `embedding` (one vector) or `video`. What was not measured is null, and
`not_measured` says why: a null without a reason is refused, and so is a reason without a null.
Needs numpy, and no engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.bundle.documents import DocumentError, dumps, parse_json, read, require_regular, shown
from edgevlm.bundle.measures import Operator, Stat
from edgevlm.bundle.plan import SiteTokens
from edgevlm.bundle.writing import write_text
from edgevlm.errors import InputError
from edgevlm.profiling.sections import (
    BlockProfile,
    Card,
    Conditions,
    EmbeddingAnswer,
    EmbeddingQuestion,
    Machine,
    SustainedSample,
    TextAnswer,
    TextQuestion,
    Timeline,
    VideoAnswer,
    VideoQuestion,
)
from edgevlm.profiling.stages import time_shares
from edgevlm.recipe import Recipe

SCHEMA_VERSION = 3
LIMIT_BYTES = 64 * 10**6
# Sections of which a profile has one, and the top-level keys that are null in all but a text one.
ANSWERS = ("text", "embedding", "video")
TEXT_KEYS = ("ttft_ms", "decode_tokens_per_s")


@dataclass(frozen=True)
class Profile:
    """One profile.

    Attributes:
        schema_version: Of this document.
        edgevlm_version: The edgevlm that wrote it.
        kind: Of the bundle; it decides the keys of `stages`.
        device: As `--device` named it, such as `local` or `ssh:me@board`.
        machine: The machine that ran the bundle.
        engine: Name of the engine.
        engine_version: The engine's own description of itself.
        threads: Threads of the engine.
        recipe: What the bundle was exported from.
        bundle: Name of the bundle's folder.
        card: What is known before anything runs.
        sites: Tokens before and after each method.
        warm_ups: Answers before the timed ones.
        runs: Timed answers.
        blocks: Each function of each block, in the order of the bundle.
        stages: Milliseconds of one answer by time share; in each answer they add up to all of it.
        end_to_end_ms: One answer, from the decoded image to its end.
        text: The answer of a model that generates text.
        embedding: The answer of an encoder.
        video: The answer of a model that makes videos.
        ttft_ms: From the decoded image to the first token, the median.
        decode_tokens_per_s: Tokens after the first, the median over the answers.
        peak_rss_bytes: Peak resident memory of the process until the last answer.
        peak_footprint_bytes: Peak private memory in an answer whose memory was sampled for it:
            anonymous or changed pages, which no system can drop.
        budget_bytes: What `--memory` allowed.
        energy_joules: Of the processor for one answer, other work of that time included.
        temperature_c: The hottest sensor after the last answer.
        conditions: The machine before and after.
        operators: Each operator with its time, from a separate run.
        placement: Number of operators on each device.
        fallback: How many of them do not run on the device that the engine asks for.
        opening: Loading of all blocks, where that is apart from the answers.
        answer: The timed answer nearest to the median.
        sustained: Answers without a pause, for the minutes that were asked for.
        warnings: What a reader has to know before believing the figures.
        not_measured: Why a value is null, by its path.
    """

    schema_version: int
    edgevlm_version: str
    kind: str
    device: str
    machine: Machine
    engine: str
    engine_version: str
    threads: int | None
    recipe: Recipe
    bundle: str
    card: Card
    sites: tuple[SiteTokens, ...]
    warm_ups: int
    runs: int
    blocks: tuple[BlockProfile, ...]
    stages: dict[str, Stat]
    end_to_end_ms: Stat
    text: TextAnswer | None
    embedding: EmbeddingAnswer | None
    video: VideoAnswer | None
    ttft_ms: float | None
    decode_tokens_per_s: float | None
    peak_rss_bytes: int
    peak_footprint_bytes: int | None
    budget_bytes: int | None
    energy_joules: float | None
    temperature_c: float | None
    conditions: Conditions
    operators: tuple[Operator, ...] | None
    placement: dict[str, int] | None
    fallback: int | None
    opening: Timeline | None
    answer: Timeline
    sustained: tuple[SustainedSample, ...] | None
    warnings: tuple[str, ...]
    not_measured: dict[str, str]

    def __post_init__(self) -> None:
        """One answer section, the stages of the kind, a reason for each null."""
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {self.schema_version}, this edgevlm reads {SCHEMA_VERSION}"
            )
        known = [share.name for share in time_shares(self.kind)]
        if unknown := set(self.stages) ^ set(known):
            raise ValueError(f"stages has or lacks {shown(min(unknown))}, known: {known}")
        if sum(getattr(self, name) is not None for name in ANSWERS) != 1:
            raise ValueError(f"one of {', '.join(ANSWERS)} must have a value")
        for name in TEXT_KEYS:
            if (getattr(self, name) is None) != (self.text is None):
                raise ValueError(f"{name} must have a value if text has one, and be null otherwise")
        empty = set(_nulls(self))
        for name in sorted(empty ^ self.not_measured.keys()):
            fault = (
                "is null without a reason in not_measured"
                if name in empty
                else "has a reason in not_measured and a value"
            )
            raise ValueError(f"{shown(name)} {fault}")

    @property
    def question(self) -> TextQuestion | EmbeddingQuestion | VideoQuestion:
        """What was asked."""
        section = self.text or self.embedding or self.video
        assert section is not None
        return section.question

    @property
    def blocks_ms(self) -> float:
        """Time of an answer in runs of blocks, from the medians of the functions."""
        return sum(block.answer_ms.median for block in self.blocks if block.answer_ms)


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile completely or not at all; the text is read back before it is written.

    Raises:
        InputError: If it cannot be written.
    """
    text = dumps(profile)
    parse_profile(text, path.name)
    write_text(path, text)


def read_profile(path: Path) -> Profile:
    """Read and check a profile.

    Raises:
        InputError: If it is not one; one line that names file and field.
    """
    try:
        require_regular(path)
        if path.stat().st_size > LIMIT_BYTES:
            raise InputError(f"'{path}' is larger than {LIMIT_BYTES} bytes, and no profile")
        text = path.read_text("utf-8")
    except OSError as cause:
        raise InputError(f"'{path}' cannot be read: {cause.strerror}") from cause
    except ValueError as cause:
        raise InputError(f"'{path}' is no profile: it is not UTF-8") from cause
    return parse_profile(text, path.name)


def parse_profile(text: str, name: str = "profile") -> Profile:
    """A profile from its JSON text.

    Raises:
        InputError: If it does not fit; one line that names the field.
    """
    try:
        document = parse_json(text, f"'{name}'")
    except DocumentError as cause:
        raise InputError(str(cause)) from cause
    except (ValueError, RecursionError) as cause:
        raise InputError(f"'{name}' is not valid JSON: {cause}") from cause
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        older = type(version) is int and 0 < version < SCHEMA_VERSION
        raise InputError(
            f"'{name}': schema_version is {shown(version)}, this edgevlm reads {SCHEMA_VERSION}"
            + ("; measure again with 'edgevlm profile'" if older else "")
        )
    try:
        return read(Profile, document, name)
    except (DocumentError, RecursionError) as cause:
        raise InputError(str(cause)) from cause


def _nulls(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all nulls, without indices of lists; those of a recipe mean something else."""
    if value is None:
        yield path
    elif isinstance(value, tuple):
        for item in value:
            yield from _nulls(item, path)
    elif dataclasses.is_dataclass(value) and not isinstance(value, Recipe):
        for field in dataclasses.fields(value):
            inside = f"{path}.{field.name}" if path else field.name
            yield from _nulls(getattr(value, field.name), inside)
