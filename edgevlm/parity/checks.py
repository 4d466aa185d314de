"""What `verify` asks of a bundle: every check with its bound, and the line that a failure prints.

Thresholds of schemes are beside the schemes; all other bounds are here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from edgevlm.quantization.schemes import Threshold

IMAGE_SENSITIVITY = 0.05
TEXT_SENSITIVITY = 1e-3
# Of logits by the same embeddings in another precision; measured 1e-7 to 1e-6.
LIKENESS_LIMIT = 1e-4
# A mean of more than one step of 8 bit is another filter or another grid, not another rounding.
PREPROCESSING_LIMIT = 0.01
# Float32 sums in another order; a row that is hidden from one side alone gives 1e-2.
CONTEXT_LIMIT = 1e-3
# Below what PyTorch itself has in float16, where tokens merge in a rounded encoder.
FLOAT16_MARGIN_DB = 3.0


@dataclass(frozen=True)
class Check:
    """One thing that a bundle must reach.

    Attributes:
        name: `BLOCK.FUNCTION`, or the measure.
        value: What was measured; None where both sides are equal to the last bit.
        bound: What is accepted: at most this error, at least this psnr_db or share.
        ok: Whether `value` is within the bound.
        text: Why it fails, or what it could not compare, in one line; else empty.
    """

    name: str
    value: float | None
    bound: float
    ok: bool
    text: str


def block_check(
    block: str,
    function: str,
    threshold: Threshold,
    rel_error: float,
    psnr_db: float | None,
    float16_psnr_db: float | None = None,
) -> Check:
    """One function against PyTorch.

    Args:
        block: Its block.
        function: Its name.
        threshold: That of the block's scheme.
        rel_error: Of its worst call.
        psnr_db: Over all calls.
        float16_psnr_db: What PyTorch has in float16 where tokens merge in a rounded block: more
            cannot be asked for.
    """
    if float16_psnr_db is not None and threshold.psnr_db is not None:
        bound = min(threshold.psnr_db, float16_psnr_db - FLOAT16_MARGIN_DB)
        threshold = replace(threshold, psnr_db=bound)
    name = f"{block}.{function}"
    return _near(name, f"{name} differs from PyTorch", threshold, rel_error, psnr_db)


def logits_check(
    thresholds: Collection[Threshold], rel_error: float, psnr_db: float | None
) -> Check:
    """A vlm's logits against PyTorch: the strictest threshold of the stages that are rounded."""
    exact = all(threshold.exact for threshold in thresholds)
    strictest = min(
        (threshold for threshold in thresholds if threshold.exact == exact),
        key=lambda threshold: (threshold.rel_error or 0.0, -(threshold.psnr_db or 0.0)),
    )
    subject = "the logits differ from PyTorch's"
    return _near("logits", subject, strictest, rel_error, psnr_db)


def tokens_check(tokens_equal: float) -> Check:
    """A vlm's greedy tokens, share of those that are PyTorch's: all must be."""
    text = f"tokens_equal is {tokens_equal:.2f}: greedy tokens are not those of PyTorch"
    return _at_least("tokens_equal", tokens_equal, 1.0, text)


def sensitivity_check(image_sensitivity: float) -> Check:
    """Relative change of the logits with another image: the check of all other checks."""
    text = (
        f"the logits change by {image_sensitivity:.3f} with another image, at least"
        f" {IMAGE_SENSITIVITY} is expected: nothing can be verified on this checkpoint"
    )
    return _at_least("image_sensitivity", image_sensitivity, IMAGE_SENSITIVITY, text)


def prompt_check(equal: float, difference: str) -> Check:
    """Odd prompts, share of those whose ids are the checkpoint's processor's: all.

    `difference` is the first one; the processor's number of visual tokens counts too.
    """
    value = equal if not difference or equal < 1.0 else 0.0
    return _at_least("token_ids_equal", value, 1.0, difference)


def stop_check(stop_ids: Collection[int], own: Collection[int]) -> Check:
    """Tokens that end an answer, share of those of the model's generation config: just those."""
    both = {*stop_ids} | {*own}
    equal = len({*stop_ids} & {*own}) / len(both) if both else 1.0
    text = f"an answer ends at {sorted(stop_ids)}, the model's generation config says {sorted(own)}"
    return _at_least("stop_ids_equal", equal, 1.0, text)


def context_check(rel_error: float, tokens: int) -> Check:
    """The last logits of a full context against the model's own forward."""
    text = (
        f"at the end of the context of {tokens} tokens the logits differ from the model's own:"
        f" rel_error {rel_error:.2e}, at most {CONTEXT_LIMIT:.0e} is accepted; its language model"
        " does what no block does"
    )
    ok = rel_error <= CONTEXT_LIMIT
    return Check("context_rel_error", rel_error, CONTEXT_LIMIT, ok, "" if ok else text)


def forward_check(rel_error: float) -> Check:
    """The scores of a prompt with a picture, by the model's parts, against its own forward."""
    text = (
        "of a picture and a question the model's own forward gives other logits than its parts:"
        f" rel_error {rel_error:.2e}, at most {CONTEXT_LIMIT:.0e} is accepted; it does with visual"
        " tokens what no block does"
    )
    ok = rel_error <= CONTEXT_LIMIT
    return Check("forward_rel_error", rel_error, CONTEXT_LIMIT, ok, "" if ok else text)


def token_ids_check(equal: float) -> Check:
    """Labels of odd shapes, share of those whose ids are the checkpoint's tokenizer's: all."""
    text = (
        f"token_ids_equal is {equal:.2f}: tokenizer.json does not cut texts as the checkpoint's own"
        " tokenizer does"
    )
    return _at_least("token_ids_equal", equal, 1.0, text)


def likeness_check(rel_error: float) -> Check:
    """Our logits of the model's own embeddings, against its logits_per_image."""
    text = (
        "host.scale and host.bias make other logits than the model's logits_per_image: rel_error"
        f" {rel_error:.2e}, at most {LIKENESS_LIMIT:.0e} is accepted"
    )
    ok = rel_error <= LIKENESS_LIMIT
    return Check("logits_per_image", rel_error, LIKENESS_LIMIT, ok, "" if ok else text)


def embedding_check(
    stage: str, threshold: Threshold, rel_error: float, psnr_db: float | None
) -> Check:
    """An encoder's embeddings against those of the model's own forward."""
    subject = f"the embeddings of stage '{stage}' differ from PyTorch's"
    return _near(f"{stage} embedding", subject, threshold, rel_error, psnr_db)


def text_sensitivity_check(changes: float) -> Check:
    """How far another text changes the velocity: a check of the check.

    A denoiser that was never trained hardly reads its text, so it is far less than an image's.
    """
    text = (
        f"velocities change by {changes:.1g} with another text, at least {TEXT_SENSITIVITY:g} is"
        " expected: nothing can be verified on this checkpoint"
    )
    return _at_least("text sensitivity", changes, TEXT_SENSITIVITY, text)


def embedding_sensitivity_check(stage: str, sensitivity: float) -> Check:
    """Relative change of an encoder's embedding with another input: the check of other checks."""
    text = (
        f"embeddings of stage '{stage}' change by {sensitivity:.3f} with another input, at least"
        f" {IMAGE_SENSITIVITY} is expected: nothing can be verified on this checkpoint"
    )
    return _at_least(f"{stage} sensitivity", sensitivity, IMAGE_SENSITIVITY, text)


def preprocessing_check(error: float | None, missing: str = "") -> Check:
    """Our preprocessing against the checkpoint's own: a mean absolute difference.

    None, where the checkpoint's processor makes no such views, does not pass. Where it cannot be
    loaded, for a library that is `missing`, nothing is compared, and the check says so.
    """
    if missing:
        text = (
            f"preprocessing is not compared: the checkpoint's image processor needs '{missing}',"
            " which is not installed"
        )
        return Check("preprocessing_error", None, PREPROCESSING_LIMIT, True, text)
    text = (
        "preprocessing cannot be compared: the checkpoint's processor makes no views of this grid"
        if error is None
        else "preprocessing differs from the checkpoint's processor: mean error"
        f" {error:.4f}, at most {PREPROCESSING_LIMIT} is accepted"
    )
    ok = error is not None and error <= PREPROCESSING_LIMIT
    return Check("preprocessing_error", error, PREPROCESSING_LIMIT, ok, "" if ok else text)


def _near(
    name: str, subject: str, threshold: Threshold, rel_error: float, psnr_db: float | None
) -> Check:
    """Whether a difference from PyTorch is within a threshold."""
    value: float | None
    if threshold.rel_error is not None:
        value, bound = rel_error, threshold.rel_error
        measured = f"rel_error {value:.2e}, at most {bound:.0e} is accepted"
    else:
        value, bound = psnr_db, threshold.psnr_db or 0.0
        measured = f"psnr_db {value or 0.0:.1f}, at least {bound:.0f} is accepted"
    ok = threshold.accepts(rel_error, psnr_db)
    return Check(name, value, bound, ok, "" if ok else f"{subject}: {measured}")


def _at_least(name: str, value: float, bound: float, text: str) -> Check:
    ok = value >= bound
    return Check(name, value, bound, ok, "" if ok else text)
