"""Kind `diffusion`: a text in, a video out, by denoising noise step by step.

    text      encode   rows of the text's tokens and which of them are words -> `text` [1, S, Ct]
    denoiser  step     latents, timestep and text -> velocity [1, C, F, h, w]
    vae       first    the first latent frame of a tile -> its frame of pixels
              next     a further one, with what the convolutions keep of those before -> its frames

Blocks of the denoiser: its embeddings alone, its layers, its head alone; so layers that a rule
skips are not loaded. Under guidance a block runs for the text and for the negative text while it
is loaded. Shapes: S tokens of a text, Ct channels of them, C channels of the latents, F latent
frames of h x w, N tokens of the denoiser of D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgevlm.bundle import checks
from edgevlm.bundle.checks import expect
from edgevlm.bundle.documents import shown
from edgevlm.bundle.functions import Block, Chain, Signature, Stage, Tensor
from edgevlm.bundle.host import Embedding
from edgevlm.bundle.kinds.shared.text import TextHost
from edgevlm.bundle.kinds.shared.video import Schedule, VaeShape, check_schedule
from edgevlm.bundle.kinds.shared.vision import passed_on
from edgevlm.bundle.plan import Plan
from edgevlm.recipe import MOST_GUIDANCE

STAGES = (
    Stage("text", True, "text encoder", "orange"),
    Stage("denoiser", True, "denoiser", "blue"),
    Stage("vae", True, "video decoder", "green"),
)
LOOP, ANSWER = "video.loop", "video"
MOST_TOKENS = 2**16
MOST_FRAMES, MOST_SIDE = 2**14, 2**14
LEAST_RATE, MOST_RATE = 0.1, 240.0
MOST_CACHES = 2**8


@dataclass(frozen=True)
class DenoiserShape:
    """Sizes of the denoiser.

    Attributes:
        latents: C, F, h, w.
        tokens: N.
        width: D.
        layers: Its layers.
        head_size: Channels of a head.
    """

    latents: tuple[int, int, int, int]
    tokens: int
    width: int
    layers: int
    head_size: int

    @property
    def parts(self) -> int:
        """Parts of the stage: embeddings, layers, head."""
        return self.layers + 2


@dataclass(frozen=True)
class DiffusionHost:
    """Constants that the program around the graphs needs.

    Attributes:
        text: The text encoder.
        denoiser: Sizes of the denoiser.
        vae: Sizes of the video decoder.
        schedule: The steps.
        guidance: Factor of classifier-free guidance (arXiv 2207.12598): the velocity is that of the
            negative text and `guidance` times what the text changes of it; 1 is none.
        frames: Frames of the video.
        height: Its pixels from top to bottom.
        width: Its pixels from left to right.
        fps: Frames that are shown in a second.
    """

    text: TextHost
    denoiser: DenoiserShape
    vae: VaeShape
    schedule: Schedule
    guidance: float
    frames: int
    height: int
    width: int
    fps: float

    @property
    def tables(self) -> Mapping[str, Embedding]:
        """The text encoder's table."""
        return {"embedding": self.text.embedding}

    def placed(self, files: Mapping[str, str]) -> DiffusionHost:
        """The same host with the file of its table."""
        table = replace(self.text.embedding, file=files["embedding"])
        return replace(self, text=replace(self.text, embedding=table))


HOST = DiffusionHost
DiffusionPlan = Plan[DiffusionHost]


def spans(host: DiffusionHost) -> dict[str, int]:
    """How far the spans of each stage's blocks reach."""
    return {"text": host.text.layers, "denoiser": host.denoiser.parts, "vae": len(host.vae.parts)}


def functions(host: DiffusionHost, block: Block) -> tuple[str, ...]:
    """Names of the functions that a block has; one latent frame has no further one."""
    if block.stage == "vae":
        return ("first", "next") if host.denoiser.latents[1] > 1 else ("first",)
    return ("encode",) if block.stage == "text" else ("step",)


def signature(host: DiffusionHost, block: Block, function: str) -> Signature:
    """What goes in and out of a function of a block."""
    if block.stage == "text":
        return _encode(host.text, block.span)
    if block.stage == "denoiser":
        return _step(host, block.span)
    return _decode(host, block.span, function)


def _encode(text: TextHost, span: tuple[int, int]) -> Signature:
    hidden = Tensor("hidden", "f32", (1, text.tokens, text.embedding.columns))
    inputs = (hidden, Tensor("mask", "f32", (1, text.tokens)))
    if span[1] == text.layers:
        return Signature(inputs, (replace(hidden, name="text"),))
    outputs, chained = passed_on([hidden])
    return Signature(inputs, tuple(outputs), (), tuple(chained))


def _step(host: DiffusionHost, span: tuple[int, int]) -> Signature:
    """The embeddings give what every layer takes beside the hidden state, and what the head takes.

    One block of all parts passes nothing on.
    """
    shape, (start, stop) = host.denoiser, span
    tokens, width = host.text.tokens, shape.width
    latents = Tensor("latents", "f32", (1, *shape.latents))
    hidden = Tensor("hidden", "f32", (1, shape.tokens, width))
    modulation = Tensor("modulation", "f32", (1, 6, width))
    context = Tensor("context", "f32", (1, tokens, width))
    tables = [Tensor(n, "f32", (1, shape.tokens, shape.head_size)) for n in ("cos", "sin")]
    time = Tensor("time", "f32", (1, width))
    last = stop == shape.parts
    inputs, passed = [hidden], [hidden]
    if start == 0:
        text = Tensor("text", "f32", (1, tokens, host.text.embedding.columns))
        inputs, passed = [latents, Tensor("timestep", "f32", (1,)), text], [hidden]
        passed += [modulation, context, *tables, time]
    elif start < shape.parts - 1:
        inputs += [modulation, context, *tables]
    if last and start:
        inputs.append(time)
    if last:
        return Signature(tuple(inputs), (replace(latents, name="velocity"),))
    outputs, chained = passed_on(passed)
    return Signature(tuple(inputs), tuple(outputs), (), tuple(chained))


def _decode(host: DiffusionHost, span: tuple[int, int], function: str) -> Signature:
    """Parts of the video decoder for one latent frame of a tile; caches are in the order of parts.

    `first` has no caches yet, and `next` those that the last call gave.
    """
    parts, (start, stop) = host.vae.parts, span
    entering = (host.denoiser.latents[0], 1, *host.vae.tile)
    if start:
        entering = getattr(parts[start - 1], function)
    name = "hidden" if start else "latents"
    inputs = [Tensor(name, "f32", (1, *entering))]
    shapes = [shape for part in parts[start:stop] for shape in part.caches]
    caches = [Tensor(f"cache_{i}", "f32", (1, *shape)) for i, shape in enumerate(shapes)]
    given = Tensor("hidden", "f32", (1, *getattr(parts[stop - 1], function)))
    outputs, chained = [replace(given, name="pixels")], list[Chain]()
    if stop < len(parts):
        outputs, chained = passed_on([given])
    outputs += [replace(cache, name=f"{cache.name}_out") for cache in caches]
    if function == "next":
        inputs += caches
    return Signature(tuple(inputs), tuple(outputs), (), tuple(chained))


def passes(plan: DiffusionPlan) -> dict[str, tuple[tuple[str, str], ...]]:
    """The orders in which a loop runs functions: (block, function)."""
    names = {"text": ("text", "encode"), "denoiser": ("denoiser", "step")}
    names |= {function: ("vae", function) for function in ("first", "next")}
    return {
        name: tuple((block.name, function) for block in plan.stage(stage))
        for name, (stage, function) in names.items()
        if function in functions(plan.host, plan.stage(stage)[0])
    }


def turn_bytes(host: DiffusionHost) -> int:
    """Bytes that a video allocates beside its blocks.

    Its frames, latents of a step and of the steps that a sampler remembers, under guidance what
    the denoiser passes on, twice, and frames of a tile in float32, which are joined and blended.
    """
    frames = 3 * host.frames * host.height * host.width
    vae = host.vae
    tile = 12 * host.frames * math.prod(vae.scale * side for side in vae.tile)
    if vae.tile != host.denoiser.latents[2:]:  # strips of a row of tiles, until the next row
        overlap = vae.scale * max(a - b for a, b in zip(vae.tile, vae.stride, strict=True))
        tile += 12 * host.frames * overlap * (host.width + host.height)
    latents = 4 * math.prod(host.denoiser.latents)
    shape = host.denoiser
    passed = 4 * shape.width * (shape.tokens + host.text.tokens + 7)
    passed += 8 * shape.tokens * shape.head_size
    text = 4 * host.text.tokens * host.text.embedding.columns
    return frames + 2 * tile + 8 * latents + 2 * (passed + text)


def outline(host: DiffusionHost) -> tuple[object, ...]:
    """The numbers that parity feeds the functions by."""
    text = replace(host.text, embedding=replace(host.text.embedding, file=""))
    schedule = replace(host.schedule, magnitudes=())
    return text, host.denoiser, host.vae, schedule, host.guidance


def facts(plan: DiffusionPlan) -> dict[str, Any]:
    """What `plan`, `export` and `inspect` say of such a bundle, by JSON key."""
    host = plan.host
    return {
        "frames": host.frames,
        "height": host.height,
        "width": host.width,
        "steps": host.schedule.steps,
        "guidance": host.guidance,
        "denoiser_tokens": host.denoiser.tokens,
    }


def check(plan: DiffusionPlan) -> None:
    """Refuse constants that do not fit each other or their files.

    Raises:
        BundleError: One line that names the field.
    """
    host, text, shape, vae = plan.host, plan.host.text, plan.host.denoiser, plan.host.vae
    checks.numbers("host.text", {"tokens": text.tokens, "layers": text.layers})
    expect(text.tokens <= MOST_TOKENS, f"host.text.tokens is {text.tokens}")
    expect(text.layers <= checks.MOST_LAYERS, f"host.text.layers is {text.layers}")
    checks.embedding(text.embedding, plan.files, "host.text.embedding")
    for name, value in (("pad_id", text.pad_id), ("end_id", text.end_id)):
        inside = value is not None and 0 <= value < text.embedding.rows
        expect(inside, f"host.text.{name} is {shown(value)}, outside the embedding table")
    expect(not text.reads_end, "host.text.reads_end is set, the denoiser takes all tokens")
    names = ("channels", "frames", "height", "width")
    sizes = dict(zip(names, shape.latents, strict=True))
    checks.numbers("host.denoiser", {**sizes, **_sizes(shape)})
    within = 1 <= shape.layers <= checks.MOST_LAYERS
    expect(within, f"host.denoiser.layers is {shape.layers}")
    expect(1 <= host.guidance <= MOST_GUIDANCE, f"host.guidance is {host.guidance:g}")
    for name, most in (("frames", MOST_FRAMES), ("height", MOST_SIDE), ("width", MOST_SIDE)):
        value = getattr(host, name)
        expect(1 <= value <= most, f"host.{name} is {shown(value)}, expected 1 to {most}")
    good = LEAST_RATE <= host.fps <= MOST_RATE
    expect(good, f"host.fps is {host.fps:g}, expected {LEAST_RATE:g} to {MOST_RATE:g}")
    check_schedule(host.schedule)
    _check_vae(host, vae)
    for block in plan.blocks:
        expect(not block.shares, f"{block.name}.shares is set, no table is shared here")


def _sizes(shape: DenoiserShape) -> dict[str, int]:
    return {name: getattr(shape, name) for name in ("tokens", "width", "head_size")}


def _check_vae(host: DiffusionHost, vae: VaeShape) -> None:
    """Refuse tiles and parts that do not give the frames of the video."""
    expect(1 <= len(vae.parts) <= checks.MOST_LAYERS, f"host.vae has {len(vae.parts)} parts")
    _, frames, height, width = host.denoiser.latents
    for tile, stride, whole in zip(vae.tile, vae.stride, (height, width), strict=True):
        good = 1 <= stride <= tile <= whole
        expect(good, f"host.vae has tiles of {tile} every {stride}, in latents of {whole}")
    for part in vae.parts:
        for sizes in (part.first, part.next, *part.caches):
            good = all(size >= 1 for size in sizes) and math.prod(sizes) <= checks.MOST_SIZE
            expect(good, f"host.vae.parts has the shape {list(sizes)}")
        expect(len(part.caches) <= MOST_CACHES, "host.vae.parts has too many caches")
    scale = vae.scale
    shown_tile = (3, scale * vae.tile[0], scale * vae.tile[1])
    first, further = vae.parts[-1].first, vae.parts[-1].next
    for name, given in (("first", first), ("next", further)):
        good = (given[0], *given[2:]) == shown_tile
        expect(good, f"host.vae gives {list(given)} as `{name}`, expected {list(shown_tile)}")
    made = first[1] + (frames - 1) * further[1]
    expect(made == host.frames, f"host.vae gives {made} frames, host.frames is {host.frames}")
    good = (scale * height, scale * width) == (host.height, host.width)
    expect(good, f"host.vae gives {scale * height}x{scale * width} pixels")
