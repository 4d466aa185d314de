"""The driver of kind `encoder`: both embeddings beside those of the model's own encoders.

    tokens         ids of labels of odd shapes, by our path and by the checkpoint's own tokenizer
    preprocessing  our view of a photo, and the checkpoint's own image processor's
    blocks         each call beside the same block in PyTorch, on the engine's own hidden states
    embeddings     of two photos, and of labels, beside get_image_features and get_text_features
    likeness       our logits of the model's own embeddings, beside its logits_per_image
    sensitivity    how far another photo's embedding is, and another label's: the check of the rest

Of a bundle with frames, a clip is a photo over which the view moves; a classifier's logits take the
place of embeddings.

Where tokens merge inside the image encoder, the model's own forward does something else: then it is
the blocks in PyTorch, in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from edgevlm.bundle.functions import Block
from edgevlm.bundle.host import ImageSpec
from edgevlm.graphs.merging import leaves, merges
from edgevlm.graphs.signals import encode
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.own_processors import load_tokenizer
from edgevlm.models.processor import missing_library
from edgevlm.parity import checks
from edgevlm.parity.calls import BlockCalls, OpenBlock
from edgevlm.parity.compare import Array, difference
from edgevlm.parity.own.preprocessing import preprocessing_error
from edgevlm.parity.rounding import by_patch, float16_psnr_db
from edgevlm.parity.verification import Verification
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.encoder import logits, mean_unit
from edgevlm.runtimes.loops.tables import Words

# Upper case, punctuation, accents and other scripts, nothing at all, and more than any text has
# room for.
LABELS = (
    "a photo of a flower", "A Photo of TWO Cats!", "it's 3.14%, isn't it?", "naïve café, 東京", "",
    "  blanks  ", "a very long text " * 40,
)  # fmt: skip
COMPARED_TEXTS = 2  # whose blocks run; ids are compared of all


@dataclass(frozen=True)
class EncoderVerification(Verification):
    """The end-to-end measures of an encoder.

    Attributes:
        image_rel_error: Of the embeddings of two photos.
        image_psnr_db: The same in decibels; None where nothing differs.
        text_rel_error: Of the embeddings of labels; None without a text encoder.
        text_psnr_db: The same in decibels; None where nothing differs.
        token_ids_equal: Share of the labels of which all ids are the checkpoint's; None without a
            text encoder.
        logits_rel_error: Of the likeness of both photos to labels, all by the model's embeddings;
            None without a text encoder.
        image_sensitivity: Relative change of the embedding with another photo.
        text_sensitivity: The same with another label; None without a text encoder.
        preprocessing_error: That of `edgevlm.parity.own.preprocessing`; None where the checkpoint's
            processor makes no such views.
    """

    image_rel_error: float
    image_psnr_db: float | None
    text_rel_error: float | None
    text_psnr_db: float | None
    token_ids_equal: float | None
    logits_rel_error: float | None
    image_sensitivity: float
    text_sensitivity: float | None
    preprocessing_error: float | None

    @property
    def summary(self) -> str:
        """The end-to-end measures, one line."""
        line = f"image_rel_error {self.image_rel_error:.1e}"
        if self.text_rel_error is not None:
            line += f", text_rel_error {self.text_rel_error:.1e}"
            line += f", token_ids_equal {self.token_ids_equal:.2f}"
        return f"{line}, image_sensitivity {self.image_sensitivity:.2f}"

    @property
    def agreement(self) -> str:
        """How near the bundle is to PyTorch, in a few words."""
        worst = max(self.image_rel_error, self.text_rel_error or 0.0)
        if self.exact:
            return f"agrees with PyTorch (embeddings {worst:.0e})"
        return f"rounded: worst block {self.worst_block}, embeddings {worst:.0e} from PyTorch's"


@dataclass(frozen=True)
class _Compared:
    """Embeddings of one stage, the engine's and PyTorch's: [n, E] each."""

    actual: Array
    expected: Array

    @property
    def sensitivity(self) -> float:
        """Relative change from the first input to the second, in PyTorch."""
        first, second = self.expected[:2]
        return difference(second, first)[0] if np.isfinite(self.expected).all() else 0.0


def verify(calls: BlockCalls, model: Any, photos: Sequence[Path]) -> EncoderVerification:
    """Compare a bundle with its model, on two photos and on labels."""
    plan, checkpoint = calls.plan, calls.planned.checkpoint
    calls.progress("verify: the expected embeddings, in PyTorch")
    views = [images.views(clip_of(photo, plan.host.image), plan.host.image) for photo in photos[:2]]
    seen, said, equal, likeness = _images(calls, model, views), None, None, None
    if plan.host.text is not None:
        said, equal, likeness = _texts(calls, model, views)
    missing = missing_library(checkpoint)
    preprocessing = None if missing else _preprocessing(calls, images.load(photos[0]))
    functions, asked = calls.results()
    if equal is not None:
        asked.append(checks.token_ids_check(equal))
    asked.append(checks.preprocessing_check(preprocessing, missing))
    measured: dict[str, tuple[float, float | None]] = {}
    for stage, compared in (("vision", seen), ("text", said)):
        if compared is None:
            continue
        threshold = calls.thresholds[stage]
        measured[stage] = difference(compared.actual, compared.expected)
        asked.append(checks.embedding_sensitivity_check(stage, compared.sensitivity))
        if threshold.exact or (threshold.end_to_end and not _merging(calls)):
            asked.append(checks.embedding_check(stage, threshold, *measured[stage]))
    if likeness is not None:
        asked.append(checks.likeness_check(likeness))
    image, text = measured["vision"], measured.get("text", (None, None))
    return EncoderVerification(
        engine=calls.engine.name,
        thresholds=calls.thresholds,
        blocks=tuple(functions),
        checks=tuple(asked),
        largest_float16=calls.largest_float16(),
        image_rel_error=image[0],
        image_psnr_db=image[1],
        text_rel_error=text[0],
        text_psnr_db=text[1],
        token_ids_equal=equal,
        logits_rel_error=likeness,
        image_sensitivity=seen.sensitivity,
        text_sensitivity=None if said is None else said.sensitivity,
        preprocessing_error=preprocessing,
    )


def _images(calls: BlockCalls, model: Any, views: Sequence[Array]) -> _Compared:
    """The embeddings of both photos."""
    planned = calls.planned
    pixels = torch.from_numpy(np.concatenate(views))
    if _merging(calls):
        encoder = calls.parts.encoder
        each = [encode(encoder.modules, view[None], grid=encoder.grid)[0][0] for view in pixels]
        expected = torch.cat(each)
    else:
        family = planned.checkpoint.family
        expected = family.reference_image(model, pixels, planned.description)
    inputs = [{"pixel_values": view[None]} for view in pixels.numpy()]
    actual = _run(calls, "vision", inputs)
    return _Compared(_joined(actual, len(views[0])), _joined(expected.numpy(), len(views[0])))


def _preprocessing(calls: BlockCalls, photo: Image.Image) -> float | None:
    """How far our view of a photo is from the checkpoint's own; see `preprocessing_error`."""
    checkpoint, image = calls.planned.checkpoint, calls.plan.host.image
    error = preprocessing_error(checkpoint, image, photo, middle=False)
    if error is None:  # the processor has this grid for a square picture alone
        error = preprocessing_error(checkpoint, image, photo)
    return error


def clip_of(photo: Path, spec: ImageSpec) -> list[Image.Image]:
    """A photo, or frames of a clip: windows of three quarters of a photo, from corner to corner."""
    picture = images.load(photo)
    if spec.frames == 1:
        return [picture]
    frames = []
    for index in range(spec.frames):
        x, y = (side * index // (4 * (spec.frames - 1)) for side in picture.size)
        window = x, y, x + picture.width * 3 // 4, y + picture.height * 3 // 4
        frames.append(picture.crop(window))
    return frames


def _joined(embeddings: Array, views: int) -> Array:
    """The embeddings [n, E] of pictures or clips, of those of all their views [n * views, E]."""
    if views == 1:
        return embeddings
    clips = embeddings.reshape(-1, views, embeddings.shape[-1])
    return np.stack([mean_unit(list(clip)) for clip in clips])


def _texts(calls: BlockCalls, model: Any, views: Sequence[Array]) -> tuple[_Compared, float, float]:
    """The embeddings of labels, and what is said of them.

    Returns:
        The embeddings, the share of all labels whose ids are the checkpoint's, and rel_error of the
        labels' likeness to the views.
    """
    planned, host = calls.planned, calls.plan.host.text
    words = Words(calls.bundle, calls.bundle.plan.host.text)
    ids = [words.ids(label) for label in LABELS]
    own = expected_ids(planned.checkpoint, host.tokens)
    equal = sum(a == b for a, b in zip(ids, own, strict=True)) / len(LABELS)
    inputs = []
    for each in ids[:COMPARED_TEXTS]:
        end = np.asarray([words.end(each) if host.reads_end else 0], np.int32)
        inputs.append({"hidden": np.asarray(words.table[each])[None], "end": end})
    family, rows = planned.checkpoint.family, torch.tensor(ids[:COMPARED_TEXTS])
    # Where the table is rounded, the model reads its own, and the difference is the scheme's.
    expected = family.reference_text(model, rows).numpy()
    pixels = torch.from_numpy(
        np.stack([clip[0, :3] for clip in views])
    )  # its own takes single images
    seen = family.reference_image(model, pixels, planned.description).numpy()
    alike = np.asarray([logits(calls.plan.host, image, expected) for image in seen])
    own = family.reference_logits(model, pixels, rows, planned.description).numpy()
    return _Compared(_run(calls, "text", inputs), expected), equal, difference(alike, own)[0]


def expected_ids(checkpoint: Checkpoint, tokens: int) -> list[list[int]]:
    """Ids of all `LABELS` by the checkpoint's own tokenizer, cut and filled up to `tokens`."""
    tokenizer = load_tokenizer(checkpoint)
    made = tokenizer([*LABELS], padding="max_length", truncation=True, max_length=tokens)
    return [list(map(int, ids)) for ids in made["input_ids"]]


def _run(calls: BlockCalls, stage: str, inputs: list[dict[str, Array]]) -> Array:
    """Embeddings [n, E] of the engine; each block makes all its calls while it is open."""
    embeddings: list[Array] = []
    for block in calls.plan.stage(stage):
        (function,) = block.functions
        with calls.open(block) as opened:
            for values in inputs:
                actual = opened.run(function, values)
                _compare(calls, opened, block, values, actual)
                values |= {to: actual[name] for name, to in function.links.items()}
                embeddings += [actual[name] for name in ("embedding", "logits") if name in actual]
    return np.concatenate(embeddings)


def _compare(
    calls: BlockCalls,
    opened: OpenBlock,
    block: Block,
    values: Mapping[str, Array],
    actual: Mapping[str, Array],
) -> None:
    """One call; by patch where the block is rounded and tokens merge."""
    (function,) = block.functions
    names, expected = function.links, opened.expected(function, values)
    sides = [{names.get(n, n): array for n, array in side.items()} for side in (actual, expected)]
    if calls.thresholds[block.stage].exact:
        opened.compare(function, *sides)
        return
    opened.compare(function, *by_patch(*sides))
    if any(merges(module) or leaves(module) for module in _modules(calls, block)):
        inputs = [values[tensor.name] for tensor in function.inputs]
        calls.note_float16(block, float16_psnr_db(opened.module, inputs, sides[1]))


def _modules(calls: BlockCalls, block: Block) -> Sequence[Any]:
    stages = {"vision": calls.parts.encoder, "text": calls.parts.text}
    modules: Sequence[Any] = stages[block.stage].modules[slice(*block.span)]
    return modules


def _merging(calls: BlockCalls) -> bool:
    """Whether tokens merge in the image encoder, or leave it."""
    return any(merges(layer) or leaves(layer) for layer in calls.parts.encoder.layers)
