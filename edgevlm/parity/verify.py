"""Parity of a bundle with PyTorch: block by block, and end to end with the model's own forward.

    1. The reference is transformers' own model: its encoder, the same method on its features, its
       language model with its own cache, 32 greedy tokens. Where tokens merge inside the encoder,
       it is the encoder of the blocks in PyTorch.
    2. The engine then runs those 32 steps with the reference's tokens (teacher forcing). Each block
       is opened once, runs its prefill chunks and decode steps, and is closed: memory stays at one
       block, whatever the size of the model.
    3. Each call of a block is compared with the same block in PyTorch on the same inputs.

rel_error = max|a - b| / max|b| of a call, psnr_db = 20 log10(max|b| / rmse) over all calls, b from
PyTorch; psnr_db is null where the two are equal. image_sensitivity is the relative change of the
first logits with another picture: a check of the check, for a model that ignores the picture would
pass anything. kept_equal is the share of the visual tokens that PyTorch keeps too; where it is not
1 because the choice hangs on rounding (`parity`), or tokens merge otherwise because a scheme rounds
the encoder, both sides go on with the engine's; `reduce` itself is compared on the same inputs.
largest_float16 is, for each function that computes in float16, the largest number in it and the
operation that gave it. preprocessing_error is that of `edgevlm.parity.preprocessing`, null where it
cannot be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.errors import BundleError, RecipeError
from edgevlm.graphs.pruning import PrunedDecoderBlock
from edgevlm.graphs.signals import method_inputs
from edgevlm.models.checkpoint import find
from edgevlm.models.family import ModelParts
from edgevlm.parity.preprocessing import LIMIT as PREPROCESSING_LIMIT
from edgevlm.parity.preprocessing import preprocessing_error
from edgevlm.parity.runner import QUESTION, Array, BlockParity, Runner, Threshold, difference
from edgevlm.planning.vlm import Planned, make_plan
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.sequence import PromptRows, causal_mask, prompt_state, rotary_tables

STEPS = 32
PHOTOS = tuple(Path(__file__).parents[1] / "photos" / name for name in ("flower.jpg", "stream.jpg"))


THRESHOLDS = {
    "none": Threshold(rel_error=1e-3),
    "fp16": Threshold(psnr_db=55.0),
    "w8a16": Threshold(psnr_db=40.0, whole=False),
    "w4g32a16": Threshold(psnr_db=20.0, whole=False),
    "w8a32": Threshold(psnr_db=40.0, whole=False),
    "w8a8": Threshold(psnr_db=30.0, whole=False),
    "w8a8s": Threshold(psnr_db=30.0, whole=False),
    "w4g32a32": Threshold(psnr_db=20.0, whole=False),
    "w4g32a8": Threshold(psnr_db=20.0, whole=False),
    "p6": Threshold(psnr_db=20.0, whole=False),
    "p4": Threshold(psnr_db=20.0, whole=False),
}
IMAGE_SENSITIVITY = 0.05


@dataclass(frozen=True)
class Verification:
    """The result of `verify`; see the module for the measures."""

    ok: bool
    logits_rel_error: float
    logits_psnr_db: float | None
    tokens_equal: float
    kept_equal: float
    image_sensitivity: float
    preprocessing_error: float | None
    thresholds: dict[str, Threshold]
    engine: str
    blocks: tuple[BlockParity, ...]
    largest_float16: dict[str, tuple[float, str]]

    def first_failure(self) -> str:
        """One line: the first block that diverges, or which end-to-end measure fails."""
        for block in self.blocks:
            if not block.ok:
                stage = block.name.rpartition("-")[0]
                said = self.thresholds[stage].said(block.rel_error, block.psnr_db)
                return f"{block.name}.{block.function} differs from PyTorch: {said}"
        if self.image_sensitivity < IMAGE_SENSITIVITY:
            return (
                f"the logits change by {self.image_sensitivity:.3f} with another picture, at least"
                f" {IMAGE_SENSITIVITY} is expected: nothing can be verified on this checkpoint"
            )
        if (self.preprocessing_error or 0.0) > PREPROCESSING_LIMIT:
            return (
                "pictures are prepared otherwise than by the checkpoint's processor: mean error"
                f" {self.preprocessing_error:.4f}, at most {PREPROCESSING_LIMIT} is accepted"
            )
        said = self.thresholds["decoder"].said(self.logits_rel_error, self.logits_psnr_db)
        return (
            f"every block agrees with PyTorch but the whole does not: the logits' {said};"
            f" tokens_equal {self.tokens_equal:.2f}"
        )


def verify(
    path: str | Path,
    model: str | None = None,
    photos: tuple[Path, ...] = PHOTOS,
    progress: Callable[[str], None] = lambda _: None,
    engine: str | None = None,
) -> Verification:
    """Check a bundle on disk against its checkpoint.

    Args:
        path: The bundle.
        model: Checkpoint to compare with; None takes the manifest's source.
        photos: Two pictures; the first is used for parity.
        progress: Called with one line per step.
        engine: Name of the engine; None takes the first that runs the bundle's target.

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
    if _outline(planned.plan) != _outline(bundle.plan):
        raise BundleError(
            f"'{path}' was not made from its recipe: another plan comes out; export it again"
        )
    progress("load the model")
    loaded = checkpoint.load_model()
    pieces = planned.pieces(loaded)
    return verify_model(bundle, planned, loaded, pieces, progress, photos, engine)


def verify_model(
    bundle: Bundle,
    planned: Planned,
    model: Any,
    pieces: ModelParts,
    progress: Callable[[str], None],
    photos: tuple[Path, ...] = PHOTOS,
    engine: str | None = None,
) -> Verification:
    """`verify` for a bundle and a model that are already open."""
    plan = bundle.plan
    thresholds = {b.stage: THRESHOLDS[plan.recipe.scheme(b.stage)] for b in plan.blocks}
    progress("verify: the reference in PyTorch")
    with torch.no_grad():
        inputs = [_pixels(photo, planned) for photo in photos]
        runner = Runner(bundle, planned, pieces, thresholds, progress, engine)
        steps = min(STEPS, plan.host.kv.tokens - plan.host.prompt_tokens - len(QUESTION))
        reference = _reference(model, pieces, planned, runner, inputs[0], max(3, steps))
        other = _reference(model, pieces, planned, runner, inputs[1], 1)
        reduced = runner.reduce(inputs[0])
        kept_equal = float(np.isin(reduced[1], reference.kept).mean())
        if kept_equal == 1.0:  # and merged alike, as far as the encoder's rounding leaves it
            near = thresholds["vision"].accepts(*difference(reduced[0], reference.visual))
            settled = near or thresholds["vision"].exact
        else:
            settled = not runner.unsettled()
        if not settled:  # both sides go on with the engine's choice
            reference = _reference(
                model, pieces, planned, runner, inputs[0], len(reference.tokens), reduced
            )
        logits = runner.run(reduced, reference.tokens)
    rel_error, psnr_db = difference(logits, reference.logits)
    equal = float((logits.argmax(1) == reference.logits.argmax(1)).mean())
    sensitivity, _ = difference(other.logits[0], reference.logits[0])
    pixels = preprocessing_error(planned.checkpoint, plan.host.image, images.load(photos[0]))
    blocks = tuple(runner.parity())
    exact = all(threshold.exact for threshold in thresholds.values())
    # Another choice of tokens is another prompt: then blocks alone can be compared.
    same = kept_equal == 1.0 or not settled
    whole = all(threshold.whole for threshold in thresholds.values()) and same
    passed = all(t.accepts(rel_error, psnr_db) for t in thresholds.values() if t.exact == exact)
    passed = (passed or not (exact or whole)) and sensitivity >= IMAGE_SENSITIVITY
    # A cache in float16 may turn a near tie, whatever the weights are.
    passed = passed and (equal == 1.0 or not exact or plan.host.kv.dtype != "f32")
    passed = passed and (pixels is None or pixels <= PREPROCESSING_LIMIT)
    return Verification(
        ok=passed and all(b.ok for b in blocks),
        logits_rel_error=rel_error,
        logits_psnr_db=psnr_db,
        tokens_equal=equal,
        kept_equal=kept_equal,
        image_sensitivity=sensitivity,
        preprocessing_error=pixels,
        thresholds=thresholds,
        engine=runner.engine.name,
        blocks=blocks,
        largest_float16={
            f"{block}.{function}": max((top, kind) for kind, top in found.items())
            for (block, function), found in runner.engine.largest.items()
        },
    )


def _outline(plan: VlmPlan) -> list[object]:
    """What parity relies on: which piece is in which block, and the tensors that leave it."""
    blocks = [(b.name, b.span, [(f.name, f.outputs) for f in b.functions]) for b in plan.blocks]
    return [plan.host.layout, plan.host.chunk, plan.host.kv, *blocks]


@dataclass(frozen=True)
class _Reference:
    tokens: tuple[int, ...]
    logits: Array  # [steps, V]
    kept: Array  # positions of the visual tokens
    visual: Array  # the visual tokens [1, K, C]


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
    model: Any,
    pieces: ModelParts,
    planned: Planned,
    runner: Runner,
    pixels: Array,
    steps: int,
    reduced: list[Array] | None = None,
) -> _Reference:
    """Greedy tokens and their logits from transformers' own forward, also over `reduced`."""
    views = torch.from_numpy(pixels)
    own, signals = planned.encoder_method is None, dict[str, torch.Tensor]()
    if planned.method.signals or not own:
        features, signals = method_inputs(pieces, planned.method.signals, views)
    if own:  # where tokens merge inside it the model's own encoder does something else
        family = planned.checkpoint.family
        features = family.reference_features(model, views, planned.description)
    made = planned.method(features, shape=planned.description.shape, **signals)
    if reduced is not None:
        made = tuple(map(torch.from_numpy, reduced))
    piece = runner.sequence(*(tensor[0].numpy() for tensor in made))
    rows, position = torch.from_numpy(piece.rows)[None], torch.from_numpy(piece.positions)[None]
    if pieces.pruning is not None:
        return _pruned_reference(pieces, planned.plan, piece, made, steps)
    past, ids, scores, length = None, list[int](), [], 0
    for _ in range(steps):
        mask = None
        if piece.bias is not None:  # else the model makes its own
            bias = np.pad(piece.bias, (0, len(ids)))
            mask = torch.from_numpy(causal_mask(length, rows.shape[1], len(bias)) + bias)
        length += rows.shape[1]
        out = pieces.language_model(
            inputs_embeds=rows,
            position_ids=position.long(),
            attention_mask=mask,
            past_key_values=past,
            use_cache=True,
        )
        past = out.past_key_values
        logits = torch.nn.functional.linear(out.last_hidden_state[:, -1], pieces.head)
        scores.append(logits[0].numpy())
        ids.append(int(logits.argmax()))
        rows, position = pieces.table[0][ids[-1]][None, None], position[:, -1:] + 1
    return _Reference(tuple(ids), np.stack(scores), made[1][0].numpy(), made[0].numpy())


def _pruned_reference(
    pieces: ModelParts, plan: VlmPlan, piece: PromptRows, made: tuple[torch.Tensor, ...], steps: int
) -> _Reference:
    """The same where visual tokens leave inside the decoder: all its layers as one, in PyTorch."""
    whole = PrunedDecoderBlock(pieces.decoder, pieces.norm, 0, pieces.pruning).eval()
    past = [torch.zeros(plan.host.kv.shape(i // 2)) for i in range(2 * plan.host.kv.layers)]
    state = [torch.from_numpy(array) for array in prompt_state(plan, piece).values()]
    ids, scores = list[int](), []
    for step in range(steps):
        hidden, *past = whole(*state, *past)
        logits = torch.nn.functional.linear(hidden[:, 0], pieces.head)
        scores.append(logits[0].numpy())
        ids.append(int(logits.argmax()))
        positions = piece.positions[-1:] + 1 + step
        tables = [torch.from_numpy(table)[None] for table in rotary_tables(plan, positions)]
        at = torch.tensor([len(piece.rows) + step], dtype=torch.int32)
        state = [pieces.table[0][ids[-1]][None, None], *tables, at, torch.ones_like(at)]
    return _Reference(tuple(ids), np.stack(scores), made[1][0].numpy(), made[0].numpy())
