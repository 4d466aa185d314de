"""Each check alone: what it accepts, and the line that names it when it fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

from edgevlm.parity import checks
from edgevlm.parity.checks import block_check, logits_check
from edgevlm.parity.verification import BlockParity
from edgevlm.parity.vlm import VlmVerification
from edgevlm.quantization.schemes import Threshold

EXACT, ROUNDED = Threshold(rel_error=1e-3), Threshold(psnr_db=30.0)
STRICT = Threshold(psnr_db=55.0)

# Name of the check that fails, a value that passes, one that does not, and the line.
CASES = {
    "vision-0.encode": (
        lambda value: block_check("vision-0", "encode", EXACT, value, 20.0),
        (1e-3, 2e-3),
        "vision-0.encode differs from PyTorch: rel_error 2.00e-03, at most 1e-03 is accepted",
    ),
    "decoder-1.decode": (
        lambda value: block_check("decoder-1", "decode", ROUNDED, 1.0, value),
        (30.0, 29.94),
        "decoder-1.decode differs from PyTorch: psnr_db 29.9, at least 30 is accepted",
    ),
    "image_sensitivity": (
        checks.sensitivity_check,
        (0.05, 0.0123),
        "the logits change by 0.012 with another image, at least 0.05 is expected: nothing can be"
        " verified on this checkpoint",
    ),
    "preprocessing_error": (
        checks.preprocessing_check,
        (0.01, 0.02),
        "preprocessing differs from the checkpoint's processor: mean error 0.0200, at most 0.01 is"
        " accepted",
    ),
    "token_ids_equal": (
        lambda value: checks.prompt_check(value, "" if value == 1.0 else "token 3 is another"),
        (1.0, 0.5),
        "token 3 is another",
    ),
    "context_rel_error": (
        lambda value: checks.context_check(value, 512),
        (1e-3, 2e-3),
        "at the end of the context of 512 tokens the logits differ from the model's own: rel_error"
        " 2.00e-03, at most 1e-03 is accepted; its language model does what no block does",
    ),
    "logits": (
        lambda value: logits_check([EXACT], value, 20.0),
        (1e-3, 2e-3),
        "the logits differ from PyTorch's: rel_error 2.00e-03, at most 1e-03 is accepted",
    ),
    "tokens_equal": (
        checks.tokens_check,
        (1.0, 31 / 32),
        "tokens_equal is 0.97: greedy tokens are not those of PyTorch",
    ),
}


def verification(made):
    return VlmVerification(
        engine="onnxruntime",
        thresholds={"vision": EXACT, "decoder": ROUNDED},
        blocks=(BlockParity("vision-0", "encode", 0.0, None, True),),
        checks=tuple(made),
        largest_float16={},
        logits_rel_error=0.0,
        logits_psnr_db=None,
        tokens_equal=1.0,
        kept_equal=1.0,
        image_sensitivity=1.0,
        preprocessing_error=0.0,
        token_ids_equal=1.0,
        context_rel_error=0.0,
    )


def all_checks(failing=()):
    return [make(values[name in failing]) for name, (make, values, _) in CASES.items()]


def test_all_that_is_accepted_passes_and_has_no_reason():
    result = verification(all_checks())
    assert result.ok
    assert result.first_failure() == ""
    assert [check.name for check in result.checks] == list(CASES)
    assert {check.text for check in result.checks} == {""}


@pytest.mark.parametrize("name", CASES)
def test_a_check_that_fails_alone_is_the_reason(name):
    result = verification(all_checks({name}))
    assert not result.ok
    assert [check.name for check in result.checks if not check.ok] == [name]
    assert result.first_failure() == CASES[name][2]
    assert "\n" not in result.first_failure()


@pytest.mark.parametrize("first", range(len(CASES)))
def test_of_several_that_fail_the_first_is_the_reason(first):
    names = list(CASES)[first:]
    assert verification(all_checks(names)).first_failure() == CASES[names[0]][2]


def test_no_check_passes_what_is_not_a_number():
    for make, _, _ in CASES.values():
        assert not make(float("nan")).ok


def test_no_difference_at_all_passes_every_threshold():
    """psnr_db is None where both sides are equal: there is no number to write."""
    exact = block_check("head-0", "logits", EXACT, 0.0, None)
    rounded = block_check("head-0", "logits", ROUNDED, 0.0, None)
    assert (exact.ok, exact.value) == (True, 0.0)
    assert (rounded.ok, rounded.value) == (True, None)


def test_logits_are_held_to_the_strictest_stage_that_is_rounded():
    """An exact stage beside a rounded one asks nothing of the logits: no answer is exact there."""
    stages = [EXACT, ROUNDED, STRICT]
    check = logits_check(stages, 1.0, 54.0)
    assert not check.ok
    assert check.bound == 55.0
    assert "psnr_db 54.0, at least 55 is accepted" in check.text
    assert logits_check(stages, 1.0, 55.0).ok
    assert logits_check(stages[:2], 1.0, 31.0).ok


@pytest.mark.parametrize(("psnr_db", "ok"), [(25.0, True), (24.9, False)])
def test_a_merging_block_need_not_be_better_than_float16_in_pytorch(psnr_db, ok):
    """28 dB in float16 and 3 dB of margin: 25 is enough where 30 would be asked for."""
    check = block_check("vision-1", "encode", ROUNDED, 1.0, psnr_db, float16_psnr_db=28.0)
    assert (check.ok, check.bound) == (ok, 25.0)


def test_float16_asks_for_no_more_than_the_scheme_does():
    check = block_check("vision-1", "encode", ROUNDED, 1.0, 31.0, float16_psnr_db=80.0)
    assert (check.ok, check.bound) == (True, 30.0)


def test_float16_changes_nothing_where_the_stage_is_exact():
    check = block_check("vision-1", "encode", EXACT, 0.5, 6.0, float16_psnr_db=1.0)
    assert (check.ok, check.bound) == (False, 1e-3)


def test_agreement_of_exact_and_of_rounded_bundles():
    result = replace(verification(all_checks()), thresholds={"vision": EXACT})
    assert result.agreement == "agrees with PyTorch (logits 0e+00, tokens 100%)"
    blocks = (
        BlockParity("vision-0", "encode", 0.0, None, True),
        BlockParity("decoder-0", "prefill", 0.1, 41.2, True),
        BlockParity("decoder-0", "decode", 0.1, 38.7, True),
    )
    result = replace(verification(all_checks()), blocks=blocks)
    expected = "rounded: worst block decoder-0.decode 39 dB, 100% of PyTorch's tokens"
    assert result.agreement == expected
