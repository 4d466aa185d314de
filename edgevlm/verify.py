"""Parity of a bundle with PyTorch: block by block, and end to end with the model's own forward.

    1. The reference is transformers' own model: its encoder, the same method on its features, its
       language model with its own cache, 32 greedy tokens.
    2. The engine then runs those 32 steps with the reference's tokens (teacher forcing). Each block
       is opened once, runs its prefill chunks and decode steps, and is closed: memory stays at one
       block, whatever the size of the model.
    3. Each call of a block is compared with the same block in PyTorch on the same inputs.

rel_error = max|a - b| / max|b|, psnr_db = 20 log10(max|b| / rmse), b from PyTorch; psnr_db is null
where the two are equal. image_sensitivity is the relative change of the first logits with another
picture: a check of the check, for a model that ignores the picture would pass anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import nn

from edgevlm.blocks import build
from edgevlm.bundle import Bundle
from edgevlm.errors import RecipeError
from edgevlm.models._checkpoint import find
from edgevlm.models._family import Pieces
from edgevlm.plan import Block, Function
from edgevlm.planning import Planned, make_plan
from edgevlm.registry import ENGINES
from edgevlm.runtimes import images
from edgevlm.runtimes.sequence import Piece, Visual, assemble, causal_mask, rotary_tables

STEPS = 32
QUESTION = "What is in this picture?"
# Views whose encoder calls are compared with PyTorch; all views go through the engine.
COMPARED_VIEWS = 2
PHOTOS = tuple(Path(__file__).parent / "photos" / name for name in ("flower.jpg", "stream.jpg"))


@dataclass(frozen=True)
class Threshold:
    """What a scheme must reach, per block and for the logits."""

    rel_error: float


THRESHOLDS = {"none": Threshold(rel_error=1e-3)}
IMAGE_SENSITIVITY = 0.05

Array = NDArray[Any]


@dataclass(frozen=True)
class BlockParity:
    """The worst call of one function."""

    name: str
    function: str
    rel_error: float
    psnr_db: float | None
    ok: bool


@dataclass(frozen=True)
class Verification:
    """The result of `verify`; see the module for the measures."""

    ok: bool
    logits_rel_error: float
    tokens_equal: float
    image_sensitivity: float
    preprocessing_error: float | None
    threshold_rel_error: float
    engine: str
    blocks: tuple[BlockParity, ...]

    def first_failure(self) -> str:
        """One line: the first block that diverges, or which end-to-end measure fails."""
        limit = self.threshold_rel_error
        for block in self.blocks:
            if not block.ok:
                return (
                    f"{block.name}.{block.function} differs from PyTorch: rel_error"
                    f" {block.rel_error:.2e}, at most {limit:.0e} is accepted"
                )
        if self.image_sensitivity < IMAGE_SENSITIVITY:
            return (
                f"the logits change by {self.image_sensitivity:.3f} with another picture, at least"
                f" {IMAGE_SENSITIVITY} is expected: nothing can be verified on this checkpoint"
            )
        return (
            f"every block agrees with PyTorch but the whole does not: logits_rel_error"
            f" {self.logits_rel_error:.2e} (at most {limit:.0e}),"
            f" tokens_equal {self.tokens_equal:.2f} (1.0)"
        )


def verify(
    path: str | Path, model: str | None = None, photos: tuple[Path, ...] = PHOTOS,
    progress: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Check a bundle on disk against its checkpoint.

    Args:
        path: The bundle.
        model: Checkpoint to compare with; None takes the manifest's source.
        photos: Two pictures; the first is used for parity.
        progress: Called with one line per step.

    Raises:
        BundleError: If the bundle is damaged.
        ModelError: If the checkpoint cannot be read.
        RecipeError: If the checkpoint is another one than the bundle was made from.
    """
    bundle = Bundle.open(path)
    source = bundle.plan.source
    checkpoint = find(model or source.model, source.revision)
    if checkpoint.config_hash != source.config_hash:
        raise RecipeError(
            f"'{checkpoint.model}' is not the checkpoint of this bundle: its config.json differs;"
            " name the right one with --model"
        )
    planned = make_plan(bundle.plan.recipe, checkpoint)
    progress("load the model")
    loaded = checkpoint.load_model()
    pieces = checkpoint.family.pieces(loaded, planned.description)
    return verify_model(bundle, planned, loaded, pieces, progress, photos)


def verify_model(
    bundle: Bundle, planned: Planned, model: Any, pieces: Pieces,
    progress: Callable[[str], None], photos: tuple[Path, ...] = PHOTOS,
) -> Verification:
    """`verify` for a bundle and a model that are already open."""
    plan = bundle.plan
    threshold = THRESHOLDS[plan.recipe.quantize]
    progress("verify: reference in PyTorch")
    with torch.no_grad():
        inputs = [_pixels(photo, planned) for photo in photos]
        runner = _Runner(bundle, planned, pieces, threshold.rel_error)
        steps = min(STEPS, plan.host.kv.tokens - plan.prompt_tokens - len(QUESTION))
        reference = _reference(model, pieces, planned, runner, inputs[0], max(3, steps))
        other = _reference(model, pieces, planned, runner, inputs[1], 1)
        progress("verify: blocks against PyTorch")
        logits = runner.run(inputs[0], reference.tokens)
    rel_error, _ = difference(logits, reference.logits)
    equal = float((logits.argmax(1) == reference.logits.argmax(1)).mean())
    sensitivity, _ = difference(other.logits[0], reference.logits[0])
    blocks = tuple(runner.parity())
    passed = rel_error <= threshold.rel_error and equal == 1.0 and sensitivity >= IMAGE_SENSITIVITY
    return Verification(
        ok=passed and all(b.ok for b in blocks), logits_rel_error=rel_error, tokens_equal=equal,
        image_sensitivity=sensitivity, preprocessing_error=None,
        threshold_rel_error=threshold.rel_error, engine=runner.engine.name, blocks=blocks,
    )


def difference(a: Array, b: Array) -> tuple[float, float | None]:
    """rel_error and psnr_db of `a` against the reference `b`."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    top = float(np.abs(b).max()) or 1.0
    rmse = float(np.sqrt(np.mean((a - b) ** 2)))
    if not np.isfinite(a).all():
        return float(np.finfo(np.float32).max), 0.0
    return float(np.abs(a - b).max()) / top, 20 * float(np.log10(top / rmse)) if rmse else None


def engine_for(target: str) -> Any:
    """The module of the first engine that runs `target`."""
    for name in ENGINES.names():
        module = ENGINES.load(name)
        if target in module.TARGETS:
            return module
    raise RecipeError(f"no engine runs target '{target}'")


@dataclass(frozen=True)
class _Reference:
    tokens: tuple[int, ...]
    logits: Array  # [steps, V]


def _pixels(photo: Path, planned: Planned) -> Array:
    spec = planned.plan.host.image
    picture = images.load(photo)
    if spec.frames == 1:
        return images.views([picture], spec)
    # A clip from a still: the window moves over the picture, so frames differ as in a pan.
    width = picture.width * 3 // 4
    shifts = np.linspace(0, picture.width - width, spec.frames).astype(int)
    frames = [picture.crop((int(x), 0, int(x) + width, picture.height)) for x in shifts]
    return images.views(frames, spec)


def _reference(
    model: Any, pieces: Pieces, planned: Planned, runner: _Runner, pixels: Array, steps: int
) -> _Reference:
    """Greedy tokens and their logits from transformers' own forward."""
    features = planned.checkpoint.family.reference_features(
        model, torch.from_numpy(pixels), planned.description
    )
    tokens, kept = planned.method(features, shape=planned.description.shape)
    piece = runner.sequence(tokens[0].numpy(), kept[0].numpy())
    rows, position = torch.from_numpy(piece.rows)[None], torch.from_numpy(piece.positions)[None]
    past, ids, scores = None, [], []
    for _ in range(steps):
        out = pieces.language_model(
            inputs_embeds=rows, position_ids=position.long(), past_key_values=past, use_cache=True
        )
        past = out.past_key_values
        logits = torch.nn.functional.linear(out.last_hidden_state[:, -1], pieces.head)
        scores.append(logits[0].numpy())
        ids.append(int(logits.argmax()))
        rows, position = pieces.table[0][ids[-1]][None, None], position[:, -1:] + 1
    return _Reference(tuple(ids), np.stack(scores))


@dataclass
class _Runner:
    """The engine's side: each block opened once, each call compared with PyTorch."""

    bundle: Bundle
    planned: Planned
    pieces: Pieces
    limit: float
    worst: dict[tuple[str, str], tuple[float, float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.bundle.plan
        self.engine = engine_for(plan.recipe.target).Engine(self.bundle)
        self.tokenizer = Tokenizer.from_file(str(self.bundle.file("tokenizer.json")))
        embedding = plan.host.embedding
        shape = (embedding.rows, embedding.columns)
        self.table = np.memmap(self.bundle.file(embedding.file), np.float32, "r", shape=shape)

    def sequence(self, tokens: Array, kept: Array) -> Piece:
        """The prompt's rows for one image or clip."""
        plan = self.bundle.plan
        times = tuple(float(i) for i in range(plan.host.image.frames))
        visual = Visual(tokens, kept, times, float(len(times)))
        return assemble(
            plan, plan.layout.prompt, self.table, self.tokenizer, QUESTION, [visual], 0
        )

    def run(self, pixels: Array, tokens: tuple[int, ...]) -> Array:
        """Logits [steps, V] of the engine, fed with the reference's tokens."""
        features = self._vision(pixels)
        reduced = self._reduce(features)
        piece = self.sequence(reduced["visual_tokens"][0], reduced["kept_positions"][0])
        rows = [np.array(self.table[t]) for t in tokens[:-1]]
        positions = piece.positions[-1] + 1 + np.arange(len(rows), dtype=np.int32)
        calls = [*self._chunks(piece), *(
            _Call("decode", len(piece.rows) + i, 1, row[None], positions[i : i + 1])
            for i, row in enumerate(rows)
        )]
        for block in self.bundle.plan.stage("decoder"):
            calls = self._decoder(block, calls)
        last = [call for call in calls if call.first + call.count >= len(piece.rows)]
        return self._head(np.stack([call.rows[call.count - 1] for call in last]))

    def parity(self) -> Iterator[BlockParity]:
        """The worst call of every function, in the plan's order."""
        for block in self.bundle.plan.blocks:
            for function in block.functions:
                rel_error, psnr = self.worst[block.name, function.name]
                yield BlockParity(
                    block.name, function.name, rel_error, psnr, rel_error <= self.limit
                )

    def _vision(self, pixels: Array) -> Array:
        hidden = [view[None] for view in pixels]
        for block in self.bundle.plan.stage("vision"):
            function = block.functions[0]
            names = function.inputs[0].name, function.outputs[0].name
            with self._open(block) as module:
                for index, view in enumerate(hidden):
                    out = self._call(block, function, {names[0]: view})[names[1]]
                    if index < COMPARED_VIEWS:
                        self._compare(block, function, [out], [module(torch.from_numpy(view))])
                    hidden[index] = out
        return np.concatenate(hidden, axis=1)

    def _reduce(self, features: Array) -> dict[str, Array]:
        (block,) = self.bundle.plan.stage("reduce")
        function = block.functions[0]
        with self._open(block) as module:
            out = self._call(block, function, {"features": features})
            tokens, kept = module(torch.from_numpy(features))
        self._compare(
            block, function, [out["visual_tokens"], out["kept_positions"]], [tokens, kept]
        )
        return out

    def _chunks(self, piece: Piece) -> list[_Call]:
        chunk, count = self.bundle.plan.host.chunk, len(piece.rows)
        calls = []
        for first in range(0, count, chunk):
            n = min(chunk, count - first)
            rows = np.zeros((chunk, piece.rows.shape[1]), np.float32)
            positions = np.zeros(chunk, np.int32)
            rows[:n] = piece.rows[first : first + n]
            positions[:n] = piece.positions[first : first + n]
            calls.append(_Call("prefill", first, n, rows, positions))
        return calls

    def _decoder(self, block: Block, calls: list[_Call]) -> list[_Call]:
        plan = self.bundle.plan
        kv = plan.host.kv
        layers = block.pieces[1] - block.pieces[0]
        shape = (1, kv.heads, kv.tokens, kv.head_size)
        cache = {
            f"{part}_{layer}": np.zeros(shape, np.float32)
            for layer in range(layers) for part in ("key", "value")
        }
        past = [torch.zeros(shape) for _ in cache]
        done = []
        with self._open(block) as module:
            for call in calls:
                cos, sin = rotary_tables(plan, call.positions)
                given = {
                    "hidden": call.rows[None], "cos": cos[None], "sin": sin[None],
                    "mask": causal_mask(call.first, len(call.rows), kv.tokens),
                    "position": np.asarray([call.first], np.int32),
                }
                function = block.function(call.function)
                shared = {f"past_{k}": v for k, v in cache.items()}
                shared |= {f"present_{k}": v for k, v in cache.items()}
                out = self._call(block, function, given, shared)["hidden_out"]
                expected, *past = module(*map(torch.from_numpy, given.values()), *past)
                end = call.first + call.count
                mine = [out[:, : call.count], *(v[:, :, :end] for v in cache.values())]
                theirs = [expected[:, : call.count], *(p[:, :, :end] for p in past)]
                self._compare(block, function, mine, theirs)
                done.append(_Call(call.function, call.first, call.count, out[0], call.positions))
        return done

    def _head(self, hidden: Array) -> Array:
        logits = []
        for block in self.bundle.plan.stage("head"):
            function = block.functions[0]
            part = []
            with self._open(block) as module:
                for row in hidden:
                    given = {"hidden": row[None, None]}
                    out = self._call(block, function, given)["logits"]
                    self._compare(block, function, [out], [module(torch.from_numpy(given["hidden"]))])
                    part.append(out[0])
            logits.append(np.stack(part))
        return np.concatenate(logits, axis=1)

    def _open(self, block: Block) -> _Opened:
        shape = self.planned.description.shape
        return _Opened(self.engine, block, build(block, self.pieces, self.planned.method, shape))

    def _call(
        self, block: Block, function: Function, given: Mapping[str, Array],
        shared: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(value) for name, value in given.items()}
        arrays |= shared or {}
        for spec in function.outputs:
            dtype = np.int32 if spec.dtype == "i32" else np.float32
            arrays.setdefault(spec.name, np.zeros(spec.shape, dtype))
        self.engine.bind(block.name, function.name, arrays)
        self.engine.run(block.name, function.name)
        return arrays

    def _compare(
        self, block: Block, function: Function, mine: list[Array], theirs: list[torch.Tensor]
    ) -> None:
        key = block.name, function.name
        for a, b in zip(mine, theirs, strict=True):
            rel_error, psnr = difference(a, b.numpy())
            worst = self.worst.get(key)
            if worst is None or rel_error > worst[0]:
                self.worst[key] = (rel_error, psnr)


@dataclass(frozen=True)
class _Call:
    """One call of a decoder block: `count` of `rows` are real, the first at cache row `first`."""

    function: str
    first: int
    count: int
    rows: Array
    positions: Array


@dataclass(frozen=True)
class _Opened:
    """A block in memory for the length of a `with`; gives the same block in PyTorch."""

    engine: Any
    block: Block
    module: nn.Module

    def __enter__(self) -> nn.Module:
        self.engine.load(self.block.name)
        return self.module

    def __exit__(self, *_: object) -> None:
        self.engine.unload(self.block.name)
