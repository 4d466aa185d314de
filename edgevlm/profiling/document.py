"""The profile: what was measured of a bundle on a machine, as one JSON document.

    {"schema_version": 1, "device": "local", "engine": "onnxruntime", "blocks": [...], ...}

These dataclasses are the schema; `profile.schema.json` beside this file is the same thing for
programs in other languages, and a test keeps them equal. What was not measured is null, and
`not_measured` says why: a null without a reason is refused, and so is a reason without a null.
Needs numpy, and no engine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle.documents import DocumentError, dumps, read, shown
from edgevlm.bundle.plan import SiteTokens
from edgevlm.bundle.writing import write_text
from edgevlm.errors import InputError
from edgevlm.recipe import Recipe

SCHEMA_VERSION = 1
LIMIT_BYTES = 64 * 10**6
STAGES = ("vision", "reduce", "prefill", "head", "decode")
# What an answer's time is made of: stages that compute, then what the loop does besides.
# `picture`: to pixels; `wait`: for loads; `host`: rows, masks, the choice of tokens.
PARTS = ("picture", *STAGES, "evict", "wait", "host")


@dataclass(frozen=True)
class Stat:
    """Measured values of one thing.

    Attributes:
        n: How many.
        median: The middle one.
        p90: Nine of ten are not above it.
    """

    n: int
    median: float
    p90: float


@dataclass(frozen=True)
class Machine:
    """Where it ran.

    Attributes:
        system: Operating system and its release.
        architecture: Of the processor, such as `x86_64`.
        processor: Its name.
        cores: Cores that this process may use.
        memory_bytes: Memory that is built in.
    """

    system: str
    architecture: str
    processor: str
    cores: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Card:
    """What is known before anything runs.

    Attributes:
        weights_bytes: All weights of the bundle, as its files hold them.
        kv_bytes: The whole cache of keys and values.
        kv_bytes_per_token: One row of it, over all layers.
        token_bytes: Weights of decoder and head, which each new token reads.
        bandwidth_bytes_per_s: Best of a few reads of memory on this machine, with as many threads.
        token_floor_ms: `token_bytes` / that. Less is possible where a cache holds the weights.
    """

    weights_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    token_bytes: int
    bandwidth_bytes_per_s: float | None
    token_floor_ms: float | None


@dataclass(frozen=True)
class Question:
    """What was asked, again and again.

    Attributes:
        image: Name of the picture's file.
        prompt: The text.
        visual_tokens: Visual tokens of the prompt.
        prompt_tokens: All tokens of the prompt.
        tokens_generated: Tokens of each answer; the end of the text does not end it.
    """

    image: str
    prompt: str
    visual_tokens: int
    prompt_tokens: int
    tokens_generated: int


@dataclass(frozen=True)
class BlockProfile:
    """One function of a block.

    Attributes:
        name: The block.
        function: The function.
        stage: The block's stage.
        weights_bytes: The block's weights, which its functions share.
        flops: Of one call, as planned.
        calls: In one answer.
        load_ms: Opening it.
        compile_ms: What the engine did once on this machine for all functions of the block, and
            kept: compiling it, or packing its matrices. No part of `load_ms`.
        run_ms: One call, in the timed answers.
        answer_ms: All calls of one answer together.
        evict_ms: Closing it and giving its memory back.
        resident_bytes: Memory that it takes while it is open and has run.
    """

    name: str
    function: str
    stage: str
    weights_bytes: int
    flops: int
    calls: int
    load_ms: Stat | None
    compile_ms: Stat | None
    run_ms: Stat | None
    answer_ms: Stat | None
    evict_ms: Stat | None
    resident_bytes: int | None


@dataclass(frozen=True)
class Event:
    """A load, run or eviction.

    Attributes:
        kind: `load`, `run` or `evict`.
        block: The block.
        function: Its function; empty for all of them together.
        part: The stage that it is for.
        start_ms: From the beginning of the timeline.
        ms: How long.
    """

    kind: str
    block: str
    function: str
    part: str
    start_ms: float
    ms: float


@dataclass(frozen=True)
class MemorySample:
    """Resident memory at a time.

    Attributes:
        ms: From the beginning of the timeline.
        rss_bytes: Of the whole process.
    """

    ms: float
    rss_bytes: int


@dataclass(frozen=True)
class Timeline:
    """What happened when.

    Attributes:
        ms: How long all of it took.
        events: In the order of their starts.
        memory: In the order of time.
    """

    ms: float
    events: tuple[Event, ...]
    memory: tuple[MemorySample, ...]


@dataclass(frozen=True)
class Operator:
    """One operator of a function, as the engine's own profiler saw it in a run of its own.

    Attributes:
        block: The block.
        function: The function.
        name: Its name in the graph that ran.
        operator: Its kind.
        module: Module of the model whose weights it reads, or where its inputs come from.
        device: Where it ran.
        calls: In one answer.
        run_ms: One call, with what the profiler itself takes.
    """

    block: str
    function: str
    name: str
    operator: str
    module: str | None
    device: str
    calls: int
    run_ms: Stat


@dataclass(frozen=True)
class Placed:
    """Where operators run: what `Engine.operators` says.

    Attributes:
        operators: Each, with its time; None where the engine does not time them.
        placement: How many run on each device, over all functions.
        fallback: How many of them are not where the engine wants them.
        not_measured: Why `operators`, or the module of each, is None.
    """

    operators: tuple[Operator, ...] | None
    placement: dict[str, int]
    fallback: int
    not_measured: dict[str, str]


@dataclass(frozen=True)
class Conditions:
    """The machine before the first answer and after the last.

    Attributes:
        temperature_before_c: The hottest sensor, in degrees Celsius.
        temperature_after_c: The same, after.
        frequency_before_mhz: Mean of the cores.
        frequency_after_mhz: The same, after.
        throttled: Whether the processor was slowed down for its temperature.
        load_before: Processes that wanted a core in the minute before.
    """

    temperature_before_c: float | None
    temperature_after_c: float | None
    frequency_before_mhz: float | None
    frequency_after_mhz: float | None
    throttled: bool | None
    load_before: float | None


@dataclass(frozen=True)
class SustainedSample:
    """One of many answers without a pause.

    Attributes:
        seconds: From the first of them to the end of this one.
        decode_tokens_per_s: Of this answer.
        ttft_ms: Of this answer.
        temperature_c: The hottest sensor after it.
    """

    seconds: float
    decode_tokens_per_s: float
    ttft_ms: float
    temperature_c: float | None


@dataclass(frozen=True)
class Profile:
    """One profile.

    Attributes:
        schema_version: Of this document.
        edgevlm_version: What wrote it.
        device: As `--device` named it, such as `local` or `ssh:me@board`.
        machine: Where it ran.
        engine: Name of the engine.
        engine_version: What the engine says of itself.
        threads: Threads of the engine.
        recipe: What the bundle was exported from.
        bundle: Name of the bundle's folder.
        card: What is known before anything runs.
        question: What was asked.
        sites: Tokens before and after each method.
        warm_ups: Answers before the timed ones.
        runs: Timed answers.
        blocks: Each function of each block, in the order of the bundle.
        stages: Milliseconds of one answer by what they went into; they add up to all of it.
        end_to_end_ms: One answer, from the decoded picture to the last token.
        token_ms: From one token to the next, of all timed answers.
        ttft_ms: From the decoded picture to the first token, the median.
        decode_tokens_per_s: Tokens after the first, the median of the answers.
        peak_rss_bytes: Most resident memory of the process until the last answer.
        peak_footprint_bytes: Most private memory that was seen in an answer watched for it:
            anonymous or changed, which no system can drop.
        budget_bytes: What `--memory` allowed.
        energy_joules: Of the processor for one answer, whatever else it did in that time.
        temperature_c: The hottest sensor after the last answer.
        conditions: The machine before and after.
        operators: Each operator with its time, from a run of its own.
        placement: How many operators run on each device.
        fallback: How many of them are not where the engine wants them.
        opening: Loading all blocks, where that is apart from the answers.
        answer: The timed answer nearest to the median.
        sustained: Answers without a pause for the minutes that were asked for.
        warnings: What a reader has to know before believing the figures.
        not_measured: Why a value is null, by its path.
    """

    schema_version: int
    edgevlm_version: str
    device: str
    machine: Machine
    engine: str
    engine_version: str
    threads: int | None
    recipe: Recipe
    bundle: str
    card: Card
    question: Question
    sites: tuple[SiteTokens, ...]
    warm_ups: int
    runs: int
    blocks: tuple[BlockProfile, ...]
    stages: dict[str, Stat]
    end_to_end_ms: Stat
    token_ms: Stat
    ttft_ms: float
    decode_tokens_per_s: float
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
        """Each null has a reason, and each reason a null."""
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {self.schema_version}, this edgevlm reads {SCHEMA_VERSION}"
            )
        if unknown := set(self.stages) ^ set(PARTS):
            raise ValueError(f"stages has or lacks {shown(min(unknown))}, known: {PARTS}")
        empty = set(_nulls(self))
        for name in sorted(empty ^ self.not_measured.keys()):
            told = (
                "has a reason in not_measured and a value"
                if name not in empty
                else ("is null without a reason in not_measured")
            )
            raise ValueError(f"{shown(name)} {told}")

    @property
    def blocks_ms(self) -> float:
        """Time of an answer in runs of blocks, from the medians of the functions."""
        return sum(block.answer_ms.median for block in self.blocks if block.answer_ms)


def stat(values: Sequence[float]) -> Stat | None:
    """Number, median and 90th percentile; None of nothing."""
    if not len(values):
        return None
    median, p90 = np.percentile(values, (50, 90))
    return Stat(len(values), round(float(median), 4), round(float(p90), 4))


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile, whole or not at all; what is written has been read back.

    Raises:
        InputError: If it cannot be written.
    """
    text = dumps(profile)
    parse_profile(text, path.name)
    write_text(path, text)


def read_profile(path: Path) -> Profile:
    """Read a profile with suspicion.

    Raises:
        InputError: If it is none; one line that names file and field.
    """
    try:
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
        document = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise InputError(f"'{name}' is not valid JSON: {cause}") from cause
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise InputError(
            f"'{name}': schema_version is {shown(version)}, this edgevlm reads {SCHEMA_VERSION}"
        )
    try:
        return read(Profile, document, name)
    except (DocumentError, RecursionError) as cause:
        raise InputError(str(cause)) from cause


def _nulls(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all nulls, without places in lists; those of a recipe mean something else."""
    if value is None:
        yield path
    elif isinstance(value, tuple):
        for item in value:
            yield from _nulls(item, path)
    elif dataclasses.is_dataclass(value) and not isinstance(value, Recipe):
        for field in dataclasses.fields(value):
            inside = f"{path}.{field.name}" if path else field.name
            yield from _nulls(getattr(value, field.name), inside)
