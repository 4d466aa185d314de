"""The sections of a profile document; `edgevlm.profiling.document` puts them together."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bundle.measures import Stat


@dataclass(frozen=True)
class Machine:
    """The machine that ran the bundle.

    Attributes:
        system: Operating system and its release.
        architecture: Of the processor, such as `x86_64`.
        processor: Its name.
        cores: Cores that this process may use.
        memory_bytes: Built-in memory.
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
        bandwidth_bytes_per_s: Memory bandwidth: the best of a few reads on this machine, with as
            many threads.
    """

    weights_bytes: int
    bandwidth_bytes_per_s: float | None


@dataclass(frozen=True)
class TextQuestion:
    """The question of every text answer.

    Attributes:
        image: Name of the image file.
        prompt: The text.
        visual_tokens: Visual tokens of the prompt.
        prompt_tokens: All tokens of the prompt.
        tokens_generated: Tokens of each answer; stop tokens do not end it.
    """

    image: str
    prompt: str
    visual_tokens: int
    prompt_tokens: int
    tokens_generated: int


@dataclass(frozen=True)
class TextAnswer:
    """An answer of generated tokens, about an image.

    Attributes:
        question: What was asked.
        token_ms: From one token to the next, over all timed answers.
        kv_bytes: The KV cache at its full length.
        kv_bytes_per_token: One row of it, over all layers.
        token_bytes: Weights of decoder and head, which each new token reads.
        token_floor_ms: `token_bytes` / memory bandwidth. A cache that holds the weights can be
            faster.
    """

    question: TextQuestion
    token_ms: Stat
    kv_bytes: int
    kv_bytes_per_token: int
    token_bytes: int
    token_floor_ms: float | None


@dataclass(frozen=True)
class EmbeddingQuestion:
    """The input of every embedding.

    Attributes:
        modality: `image` or `text`.
        source: Name of the image file, or the text.
    """

    modality: str
    source: str


@dataclass(frozen=True)
class EmbeddingAnswer:
    """An answer of one vector: one encode of an image or a text.

    Attributes:
        question: What was encoded.
        dimensions: Length of the vector.
        encode_ms: One encode, from the decoded input to the vector.
    """

    question: EmbeddingQuestion
    dimensions: int
    encode_ms: Stat


@dataclass(frozen=True)
class VideoQuestion:
    """What every video was made of.

    Attributes:
        prompt: The text.
        frames: Frames of the video.
        height: Its pixels from top to bottom.
        width: Its pixels from left to right.
        steps: Steps of the schedule.
        guidance: Factor of guidance; 1 is none.
        steps_run: Steps in which the whole denoiser ran.
        steps_skipped: Steps in which its layers were skipped.
        steps_forecast: Steps without a call of it.
    """

    prompt: str
    frames: int
    height: int
    width: int
    steps: int
    guidance: float
    steps_run: int
    steps_skipped: int
    steps_forecast: int


@dataclass(frozen=True)
class VideoAnswer:
    """An answer of one video.

    Attributes:
        question: What was asked.
        text_ms: Embeddings of the text and of the negative one.
        denoise_ms: All steps.
        frames_ms: Frames of the latents.
        loads: Functions that the last answer loaded.
    """

    question: VideoQuestion
    text_ms: Stat
    denoise_ms: Stat
    frames_ms: Stat
    loads: int


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
        load_ms: Loading it.
        compile_ms: What the engine does once on a machine for all functions of the block and keeps:
            compilation, or packing of matrices. Not part of `load_ms`.
        run_ms: One call, in the timed answers.
        answer_ms: All calls of one answer together.
        evict_ms: Unloading it and returning its memory.
        resident_bytes: Memory that one load and one run add.
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
        stage: The time share that it belongs to, a key of `Profile.stages`; of a function that
            serves several, and of loads, the block's stage.
        start_ms: From the beginning of the timeline.
        ms: Duration.
    """

    kind: str
    block: str
    function: str
    stage: str
    start_ms: float
    ms: float


@dataclass(frozen=True)
class MemorySample:
    """Resident memory at one time.

    Attributes:
        ms: From the beginning of the timeline.
        rss_bytes: Of the whole process.
    """

    ms: float
    rss_bytes: int


@dataclass(frozen=True)
class Timeline:
    """Events and memory over time.

    Attributes:
        ms: Total duration.
        events: In the order of their starts.
        memory: In the order of time.
    """

    ms: float
    events: tuple[Event, ...]
    memory: tuple[MemorySample, ...]


@dataclass(frozen=True)
class Conditions:
    """The machine before the first answer and after the last.

    Attributes:
        temperature_before_c: The hottest sensor, in degrees Celsius.
        temperature_after_c: The same, after.
        frequency_before_mhz: Mean of the cores.
        frequency_after_mhz: The same, after.
        throttled: Whether the processor was slowed down because of its temperature.
        load_before: Load average of the minute before: processes that wanted a core.
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
        seconds: From the start of the first answer to the end of this one.
        answer_ms: This answer.
        ttft_ms: Time to first token of this answer.
        decode_tokens_per_s: Of this answer.
        temperature_c: The hottest sensor after it.
    """

    seconds: float
    answer_ms: float
    ttft_ms: float | None
    decode_tokens_per_s: float | None
    temperature_c: float | None
