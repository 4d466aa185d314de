from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.errors import RecipeError
from edgevlm.recipe import MethodChoice, Recipe, parse_bytes, parse_method, parse_tiles


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"context": -5}, "context must be at least 1, got -5"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"block_size_bytes": 0}, "block_size_bytes must be at least 1, got 0"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"frames": 10**9}, "frames must be at most 1024, got 1000000000"),
        ({"context": 10**12}, "context must be at most 16777216, got 1000000000000"),
        ({"chunk": 10**12}, "chunk must be at most 16777216, got 1000000000000"),
        ({"tiles": (0, 2)}, "tiles must be at least 1x1, got 0x2"),
        ({"tiles": (2, 2), "frames": 4}, "frames and tiles do not go together"),
        ({"model": "\udcff"}, "a name in the recipe is not valid UTF-8"),
        ({"methods": ("tome", "\udcff")}, "a name in the recipe is not valid UTF-8"),
    ],
)
def test_refuses_what_no_model_could_serve(values, message):
    with pytest.raises(RecipeError) as error:
        Recipe(**values)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MB", 64_000_000), ("1.5 GB", 1_500_000_000), ("100kB", 100_000), ("7", 7), ("2KiB", 2048),
     ("3mib", 3 * 2**20), ("1GiB", 2**30), (" 5B ", 5)],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "1e9", "64 MB MB", "5XB", "9" * 400, "1,5MB"])
def test_a_wrong_size_shows_a_right_one(text):
    with pytest.raises(RecipeError, match=r"a size looks like 64MB or 1\.5GB, got"):
        parse_bytes(text)


def test_tiles():
    assert parse_tiles("2x3") == (2, 3)
    for text in ("2", "2x", "x", "2x3x4", "-1x2", "100x1", "a x b"):
        with pytest.raises(RecipeError, match="tiles must look like ROWSxCOLUMNS, for example 2x2"):
            parse_tiles(text)


def test_methods():
    assert parse_method("divprune") == MethodChoice("divprune", None, {})
    assert parse_method("average-pool").name == "average_pool"
    choice = parse_method("tome@tokens:r=2,ratio=0.5,positions=original")
    assert choice == MethodChoice("tome", "tokens", {"r": 2, "ratio": 0.5, "positions": "original"})


@pytest.mark.parametrize("text", ["", "@tokens", "tome@", "tome:r", "tome:=2", "a b", "tome:r=1,,"])
def test_a_wrong_method_shows_the_form(text):
    with pytest.raises(RecipeError) as error:
        parse_method(text)
    assert str(error.value) == f"a method looks like NAME[@SITE][:key=value,…], got '{text}'"


@given(st.text(max_size=30))
def test_no_text_breaks_the_parsers(text):
    for parse in (parse_method, parse_bytes, parse_tiles):
        with contextlib.suppress(RecipeError):
            parse(text)


def test_stages_may_have_schemes_of_their_own():
    recipe = Recipe(quantize="fp16, decoder=w4g32a16,head=w8a16")
    stages = ("vision", "reduce", "decoder", "head")
    assert [recipe.scheme(s) for s in stages] == ["fp16", "none", "w4g32a16", "w8a16"]
    assert Recipe(quantize="decoder=w8a16").scheme("vision") == "none"
    assert Recipe().schemes() == {"": "none"}


@pytest.mark.parametrize("text", ["", "fp16,", "fp16,w8a16", "=fp16", "head=", "a=b,a=c"])
def test_refuses_what_is_no_scheme(text):
    with pytest.raises(RecipeError, match=r"^quantize looks like SCHEME or SCHEME,STAGE=SCHEME"):
        Recipe(quantize=text).schemes()
