"""What a family takes and refuses, asked of plans of its tiny preset; no weight is written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from checkpoints.shared.weights import parameter_shapes
from make_checkpoint import PRESETS, write_file
from tokenizers import Tokenizer

from edgevlm.errors import EdgeVLMError, ModelError, PlanError
from edgevlm.exporters.contract import find_target
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.planning.target import check_attention
from edgevlm.recipe import Recipe
from edgevlm.registry import FAMILIES, METHODS, TARGETS

TINY = "tiny-"
TILES, LAYERS = "only with tiles", "only from another layer on"
FRAMES, FEW_FRAMES = "only with --frames", 4
OF_CLIPS = ("num_frames", "frames_per_clip")  # keys of config.json


@dataclass(frozen=True)
class Size:
    """A preset at its true size: millions of parameters, pixels of a view, visual tokens."""

    preset: str
    parameters: float
    view: tuple[int, int]
    tokens: int | None


@dataclass(frozen=True)
class Facts:
    """What a family is and does.

    Attributes:
        name: Its model type.
        kind: `vlm` or `encoder`.
        tiny: Its tiny preset.
        sizes: Its presets at true size.
        methods: NAME@SITE -> why it is refused; empty where it is not.
        targets: Target -> why it is refused; empty where it is not.
        unasked: Why no plan could be asked here; empty where one could.
        recurrent: Whether layers of its language model are.
    """

    name: str
    kind: str
    tiny: str
    sizes: tuple[Size, ...]
    methods: dict[str, str]
    targets: dict[str, str]
    unasked: str = ""
    recurrent: bool = False


def facts(folder: Path) -> Iterator[Facts]:
    """The facts of each family that has a tiny preset, by name.

    Args:
        folder: Where checkpoints without weights may be written.
    """
    tokenizers, presets = dict[str, Tokenizer](), dict[str, list[str]]()
    for preset, module in PRESETS.items():
        if preset.startswith(TINY):
            tokenizers[preset] = module.tokenizer(module.PRESETS[preset])
            config = module.config(module.PRESETS[preset], tokenizers[preset])
            presets.setdefault(config["model_type"], []).append(preset)
    for name in FAMILIES.names():
        if name not in presets:
            continue
        tiny, kind = presets[name][0], FAMILIES.load(name).KIND
        module, tokenizer = PRESETS[tiny], tokenizers[tiny]
        try:
            checkpoint = written(folder / tiny, tiny, module, tokenizer)
            _described(checkpoint)
        except ModelError as cause:  # of a library that its encoder needs
            yield Facts(name, kind, tiny, (), {}, {}, why_unasked(str(cause)))
            continue
        sizes = tuple(_sizes(name, folder, module, tokenizer))
        targets = {target: _refusal(checkpoint, target) for target in TARGETS.names()}
        decoder = getattr(_described(checkpoint), "decoder", None)
        recurrent = decoder is not None and decoder.recurrent
        answers = dict(_methods(checkpoint))
        yield Facts(name, kind, tiny, sizes, answers, targets, recurrent=recurrent)


def why_unasked(reason: str) -> str:
    """Why no plan could be asked: without the checkpoint's folder, and without what to do."""
    named = re.sub(r"^'[^']*':? ", "", reason)
    return f"not asked: {named.partition(';')[0]}"


def written(folder: Path, preset: str, module: ModuleType, tokenizer: Tokenizer) -> Checkpoint:
    """A preset without weights, by another tokenizer than its own where that is quicker."""
    numbers = module.PRESETS[preset]
    config = module.config(numbers, tokenizer)
    folder.mkdir()
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in {"config.json": config, **module.files(numbers, config)}.items():
        write_file(folder / name, content)
    return find(str(folder))


def _sizes(family: str, folder: Path, module: ModuleType, tokenizer: Tokenizer) -> Iterator[Size]:
    """The presets of a sample file at true size that are of the family."""
    for preset, numbers in module.PRESETS.items():
        config = module.config(numbers, tokenizer)
        if preset.startswith(TINY) or config["model_type"] != family:
            continue
        checkpoint = written(folder / preset, preset, module, tokenizer)
        described = _described(checkpoint)
        shape = getattr(described, "shape", None)
        count = sum(math.prod(shape) for shape in parameter_shapes(config).values())
        view = described.image.height, described.image.width
        yield Size(preset, count / 1e6, view, None if shape is None else shape.tokens)


def _methods(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    for name in METHODS.names():
        for site in METHODS.sites_of(name):
            yield f"{name}@{site}", method_refusal(checkpoint, name, site)


def method_refusal(checkpoint: Checkpoint, name: str, site: str) -> str:
    """Why a plan refuses a method, without its name; empty where it takes it.

    Where another grid of tiles is taken, or at site decoder another layer, that is said instead.
    """
    first = ""
    for tiles, layer, frames, only in _variants(checkpoint, site):
        try:
            recipe = _recipe(checkpoint, name, site, tiles, layer, frames)
            make_plan(recipe, checkpoint)
        except EdgeVLMError as cause:
            first = first or unnamed(str(cause), name, site)
        else:
            return only
    return first


def _variants(checkpoint: Checkpoint, site: str) -> Iterator[tuple[tuple[int, int], int, int, str]]:
    """Tiles, a layer and frames to try, with what is said where these are the first taken."""
    clip = _frames(checkpoint)
    yield (1, 1), 1, clip, ""
    if clip == 1:
        yield (2, 2), 1, 1, TILES
        yield (1, 1), 1, FEW_FRAMES, FRAMES
    if site == "decoder" and hasattr(described := _described(checkpoint), "decoder"):
        # Tokens are chosen by a layer that attends, which not all do.
        for layer in range(2, len(described.decoder.layers) * described.decoder.recurrent):
            yield (1, 1), layer, 1, LAYERS


def _frames(checkpoint: Checkpoint) -> int:
    """Frames of a clip that an encoder reads at once; 1 of one that reads pictures."""
    counts = (getattr(checkpoint.config, key, 0) for key in OF_CLIPS)
    return next(filter(None, counts), 1)


def _described(checkpoint: Checkpoint, tiles: tuple[int, int] = (1, 1), frames: int = 0) -> Any:
    frames = frames or _frames(checkpoint)
    return checkpoint.describe(Recipe(model=checkpoint.model, tiles=tiles, frames=frames))


def unnamed(reason: str, name: str, site: str) -> str:
    """A refusal without the method's name, so that methods refused alike have one."""
    bare = re.sub(rf"^(method '{name}'|{name})(:| at site {site})? ?", "", reason)
    return bare.removesuffix(" (it works there: add @vision)")


def _recipe(
    checkpoint: Checkpoint, name: str, site: str, tiles: tuple[int, int], layer: int, frames: int
) -> Recipe:
    """A recipe with the method at half or a quarter of the tokens, `layer` where it has one."""
    model = checkpoint.model
    described = _described(checkpoint, tiles, frames)
    layers = max(1, described.encoder.layers)
    few = max(1, described.encoder.patches * 3 // 4)
    speaks = hasattr(described, "decoder")  # else it gives embeddings, and refuses other sites
    if site != "vision" and not speaks:
        return Recipe(model=model, frames=frames, methods=(f"{name}@{site}",))
    if site == "tokens":
        tokens = None if name == "identity" else max(1, described.shape.tokens // 4)
        if frames > 1 and tokens:
            tokens = described.shape.tokens // frames  # what the first frame has, which some keep
        return Recipe(
            model=model, tiles=tiles, frames=frames, tokens=tokens, methods=(f"{name}@{site}",)
        )
    options = {"dymu": "merges=" + "+".join(["2"] * layers), "tome": f"patches={few},by={layers}",
               "soft_merge": f"patches={few},layer=1", "mustdrop": f"patches={few}",
               "centerclip": f"patches={few // 2 * 2},segments=2,layer=1",
               "tempme": "join=2,layer=1"}  # fmt: skip
    if site == "decoder":
        total, depth = described.shape.tokens, len(described.decoder.layers)
        one = f"tokens={total // 2},layer={layer}"
        many = f"tokens={total // 2},layers={layer}"
        options = {"fastv": one, "dart": one, "holitom": one, "exit": f"layer={layer}",
                   "mustdrop": many,
                   "pyramiddrop": f"layers={layer}", "sparsevlm": many, "visiondrop": many,
                   "vflowopt": many,
                   "schedule": f"stages={layer}x{total}+{depth - layer}x{total // 2}"}  # fmt: skip
    given = f":{options[name]}" if name in options else ""
    methods = (f"{name}@{site}{given}",)
    return Recipe(model=model, tiles=tiles, frames=frames, methods=methods)


def _refusal(checkpoint: Checkpoint, target: str) -> str:
    """Why a target takes no checkpoint of the family's tiny preset; its schemes are no matter."""
    recipe = Recipe(model=checkpoint.model, target=target, frames=_frames(checkpoint))
    described = checkpoint.describe(recipe)
    try:
        if hasattr(described, "decoder"):
            check_attention(recipe, find_target(target), described.decoder)
    except PlanError as cause:
        return str(cause)
    return ""
