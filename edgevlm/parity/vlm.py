"""The driver of kind `vlm`: PyTorch answers a question about an image, and the engine answers it.

The engine runs the steps of PyTorch's answer with PyTorch's tokens (teacher forcing), so that their
logits can be compared. Where `reduce` keeps other tokens because the choice hangs on rounding
(`rounding`), or tokens merge otherwise because a scheme rounds the encoder, both sides go on with
the engine's tokens; where they are other tokens for another reason, blocks alone can be compared.

What goes in and how far an answer reaches is compared with the checkpoint's own software (`own`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle.host import ImageSpec
from edgevlm.parity import checks
from edgevlm.parity.calls import BlockCalls
from edgevlm.parity.compare import Array, difference
from edgevlm.parity.own.vlm import compare_own
from edgevlm.parity.verification import Verification
from edgevlm.parity.vlm_blocks import QUESTION, Reduced, VlmBlocks
from edgevlm.parity.vlm_expected import ExpectedAnswer, ExpectedAnswers
from edgevlm.planning.vlm import VlmPlanned
from edgevlm.runtimes.loops import images

STEPS, LEAST_STEPS = 32, 3


@dataclass(frozen=True)
class VlmVerification(Verification):
    """The end-to-end measures of a vlm.

    Attributes:
        logits_rel_error: Of the logits of all steps.
        logits_psnr_db: The same in decibels; None where nothing differs.
        tokens_equal: Share of the greedy tokens that are PyTorch's.
        kept_equal: Share of the visual tokens that PyTorch keeps too.
        image_sensitivity: Relative change of the first logits with another image: a check of the
            checks, for a model that ignores the image would pass anything.
        preprocessing_error: That of `edgevlm.parity.own.preprocessing`; None where the checkpoint's
            processor makes no such views.
        token_ids_equal: Share of odd prompts, without an image, with one and with two, whose ids
            are those of the checkpoint's processor.
        context_rel_error: Of the last logits of a full context, our layers in PyTorch from the
            model's own forward.
    """

    logits_rel_error: float
    logits_psnr_db: float | None
    tokens_equal: float
    kept_equal: float
    image_sensitivity: float
    preprocessing_error: float | None
    token_ids_equal: float
    context_rel_error: float

    @property
    def summary(self) -> str:
        """The end-to-end measures, one line."""
        return (
            f"logits_rel_error {self.logits_rel_error:.1e}, tokens_equal {self.tokens_equal:.2f},"
            f" kept_equal {self.kept_equal:.2f}, image_sensitivity {self.image_sensitivity:.2f}"
        )

    @property
    def agreement(self) -> str:
        """How near the bundle is to PyTorch, in a few words."""
        equal = f"{self.tokens_equal:.0%}"
        if self.exact:
            return f"agrees with PyTorch (logits {self.logits_rel_error:.0e}, tokens {equal})"
        return f"rounded: worst block {self.worst_block}, {equal} of PyTorch's tokens"


@dataclass(frozen=True)
class _Answers:
    """Both sides' answer to the same visual tokens, and whether the tokens are the same ones."""

    expected: ExpectedAnswer
    logits: Array  # [steps, V], the engine's
    kept_equal: float
    same_tokens: bool


def verify(calls: BlockCalls, model: Any, photos: Sequence[Path]) -> VlmVerification:
    """Compare a bundle with its model, on two photos; the second shows that the image matters."""
    plan, blocks = calls.plan, VlmBlocks(calls)
    calls.progress("verify: the expected answer, in PyTorch")
    first, second = (_pixels(photo, plan.host.image) for photo in photos[:2])
    planned = calls.planned
    assert isinstance(planned, VlmPlanned)
    pytorch = ExpectedAnswers(model, calls.parts, planned, blocks.prompt_rows)
    steps = min(STEPS, plan.host.states.tokens - plan.host.prompt_tokens - len(QUESTION))
    expected = pytorch.answer(first, max(LEAST_STEPS, steps))
    other = pytorch.answer(second, 1)
    answers = _answers(blocks, blocks.reduce(first), pytorch, expected)
    rel_error, psnr_db = difference(answers.logits, answers.expected.logits)
    equal = float((answers.logits.argmax(1) == answers.expected.logits.argmax(1)).mean())
    sensitivity = _sensitivity(other.logits[0], answers.expected.logits[0])
    calls.progress("verify: the checkpoint's own processor, and the end of the context")
    prompt = blocks.prompt_rows(expected.visual[0], expected.kept)
    own = compare_own(calls, model, blocks.tokenizer, prompt, QUESTION, images.load(photos[0]))
    functions, asked = calls.results()
    asked += [checks.sensitivity_check(sensitivity), *own.checks]
    thresholds = calls.thresholds.values()
    exact = all(threshold.exact for threshold in thresholds)
    if exact or (answers.same_tokens and all(threshold.end_to_end for threshold in thresholds)):
        asked.append(checks.logits_check(thresholds, rel_error, psnr_db))
    if exact and plan.host.states.exact:  # a float16 cache may turn a near tie
        asked.append(checks.tokens_check(equal))
    return VlmVerification(
        engine=calls.engine.name,
        thresholds=calls.thresholds,
        blocks=tuple(functions),
        checks=tuple(asked),
        largest_float16=calls.largest_float16(),
        logits_rel_error=rel_error,
        logits_psnr_db=psnr_db,
        tokens_equal=equal,
        kept_equal=answers.kept_equal,
        image_sensitivity=sensitivity,
        preprocessing_error=own.preprocessing_error,
        token_ids_equal=own.token_ids_equal,
        context_rel_error=own.context_rel_error,
    )


def _answers(
    blocks: VlmBlocks, reduced: Reduced, pytorch: ExpectedAnswers, expected: ExpectedAnswer
) -> _Answers:
    """The engine's answer beside PyTorch's, which begins again where the engine's tokens count."""
    kept_equal = float(np.isin(reduced.kept, expected.kept).mean())
    if kept_equal == 1.0:  # and merged alike, as far as the encoder's rounding leaves it
        vision = blocks.calls.thresholds["vision"]
        near = vision.accepts(*difference(reduced.visual, expected.visual))
        settled = near or vision.exact
    else:
        settled = not reduced.hangs_on_rounding()
    if not settled:
        expected = pytorch.answer_to(list(reduced.outputs.values()), len(expected.tokens))
    logits = blocks.logits(reduced, expected.tokens)
    return _Answers(expected, logits, kept_equal, kept_equal == 1.0 or not settled)


def _sensitivity(other: Array, expected: Array) -> float:
    """Relative change of logits [V] with another image; none where they are not finite."""
    finite = np.isfinite(other).all() and np.isfinite(expected).all()
    return difference(other, expected)[0] if finite else 0.0


def _pixels(photo: Path, spec: ImageSpec) -> Array:
    """All views of a photo [P, 3, h, w]; a clip is a window that moves over it, as in a pan."""
    image = images.load(photo)
    if spec.frames == 1:
        return images.views([image], spec)
    width = image.width * 3 // 4
    shifts = np.linspace(0, image.width - width, spec.frames).astype(int)
    frames = [image.crop((int(x), 0, int(x) + width, image.height)) for x in shifts]
    return images.views(frames, spec)
