"""Names of schemes, what they say, and the thresholds that follow."""

from __future__ import annotations

import pytest

from edgevlm.errors import RecipeError
from edgevlm.quantization.schemes import Scheme, Schemes, Threshold, parse_scheme, threshold


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("none", Scheme("none", 32, 32)),
        ("fp16", Scheme("fp16", 16, 16)),
        ("w8a32", Scheme("w8a32", 8, 32)),
        ("w4g32a8", Scheme("w4g32a8", 4, 8, group=32)),
        ("w8a8s", Scheme("w8a8s", 8, 8, static=True)),
        ("p6", Scheme("p6", 6, 16, palette=True)),
    ],
)
def test_a_name_says_its_bits(name, scheme):
    assert parse_scheme(name) == scheme


@pytest.mark.parametrize(
    "name",
    ["", "NONE", "int8", "w8", "a8", "w9a8", "w0a8", "w8a4", "w8a32s", "w4g0a8", "p9", "w8a8 "],
)  # fmt: skip
def test_no_scheme_could_have_that_name(name):
    with pytest.raises(
        RecipeError, match=f"^'{name}' is not a quantization scheme; expected one like"
    ):
        parse_scheme(name)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("none",), Threshold(rel_error=1e-3)),
        (("fp16",), Threshold(psnr_db=55.0)),
        (("w8a16", "w8a32"), Threshold(psnr_db=40.0, end_to_end=False)),
        (("w8a8", "w8a8s"), Threshold(psnr_db=30.0, end_to_end=False)),
        (
            ("w4g32a32", "w4g32a16", "w4g32a8", "p6", "p4"),
            Threshold(psnr_db=20.0, end_to_end=False),
        ),
    ],
)
def test_thresholds_follow_the_bits(names, expected):
    assert {threshold(name) for name in names} == {expected}


def test_stages_of_a_recipe():
    schemes = Schemes.parse("vision=fp16,w8a8,decoder=w4g32a8")
    assert schemes == Schemes("w8a8", (("decoder", "w4g32a8"), ("vision", "fp16")))
    assert str(schemes) == "w8a8,decoder=w4g32a8,vision=fp16"
    assert [schemes.of(s) for s in ("vision", "head", "reduce")] == ["fp16", "w8a8", "none"]
    only_fp16 = schemes.replaced(lambda name: "fp16" if name == "fp16" else "none")
    assert str(only_fp16) == "none,decoder=none,vision=fp16"
