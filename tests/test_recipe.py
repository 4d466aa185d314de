from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.bundle.documents import dumps, read
from edgevlm.errors import RecipeError
from edgevlm.options import options
from edgevlm.quantization.schemes import Schemes
from edgevlm.recipe import MethodChoice, Recipe, parse_tiles
from edgevlm.units import parse_bytes, spell_bytes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"tokens": "16"}, "tokens must be an integer, got '16'"),
        ({"tokens": 1.5}, "tokens must be an integer, got 1.5"),
        ({"context": -5}, "context must be at least 1, got -5"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"block_size_bytes": 0}, "block_size_bytes must be at least 1, got 0"),
        ({"block_size_bytes": 1.5}, "block_size_bytes looks like SIZE, got 1.5"),
        ({"block_size_bytes": "big"}, "a size looks like 64MB or 1.5GB, got 'big'"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"frames": None}, "frames must be an integer, got None"),
        ({"frames": 10**9}, "frames must be at most 1024, got 1000000000"),
        ({"context": 10**12}, "context must be at most 16777216, got 1000000000000"),
        ({"chunk": 10**12}, "chunk must be at most 16777216, got 1000000000000"),
        ({"tiles": (0, 2)}, "tiles must be at least 1x1, got 0x2"),
        ({"tiles": (1, 2, 3)}, "tiles looks like ROWSxCOLUMNS, got (1, 2, 3)"),
        ({"tiles": "2x"}, "tiles must look like ROWSxCOLUMNS, for example 2x2, got '2x'"),
        ({"tiles": (2, 2), "frames": 4}, "frames and tiles exclude each other"),
        ({"size": "448"}, "size must look like HEIGHTxWIDTH in pixels, for example 448x672, got"),
        ({"size": (0, 448)}, "size must be from 1x1 to 16384x16384 pixels, got 0x448"),
        ({"size": "99999x448"}, "size must be from 1x1 to 16384x16384 pixels, got 99999x448"),
        ({"size": 448}, "size looks like HEIGHTxWIDTH, got 448"),
        ({"model": "\udcff"}, "a name in the recipe is not valid UTF-8"),
        ({"model": 5}, "model looks like MODEL, got 5"),
        ({"methods": ("tome", "\udcff")}, "a name in the recipe is not valid UTF-8"),
        ({"methods": ("a b",)}, "a method looks like NAME[@SITE][:key=value,…], got 'a b'"),
        ({"methods": None}, "methods looks like NAME[@SITE][:key=value,…], got None"),
        ({"methods": (MethodChoice("a b"),)}, "a method looks like NAME[@SITE]"),
        ({"quantize": "=x"}, "quantize looks like SCHEME or SCHEME,STAGE=SCHEME"),
        ({"quantize": Schemes("int8")}, "'int8' is not a quantization scheme"),
    ],
)
def test_refuses_what_no_model_could_serve(values, message):
    with pytest.raises(RecipeError) as error:
        Recipe(**values)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MB", 64_000_000), ("1.5 GB", 1_500_000_000), ("100kB", 100_000), ("7", 7), ("2KiB", 2048),
     ("3mib", 3 * 2**20), ("1GiB", 2**30), (" 5B ", 5), (f"{2**49 + 1}", 2**49 + 1)],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_bytes(text) == size


@given(st.integers(0, 10**15 - 1))
def test_a_size_reads_back(size):
    assert parse_bytes(spell_bytes(size)) == size


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
    assert MethodChoice.parse("divprune") == MethodChoice("divprune")
    assert MethodChoice.parse("average-pool").name == "average_pool"
    options = (("r", 2), ("ratio", 0.5), ("positions", "original"))
    choice = MethodChoice.parse("tome@tokens:r=2, ratio=0.5,positions = original")
    assert choice == MethodChoice("tome", "tokens", options)
    assert MethodChoice.parse("schedule:8x64,4x16") == MethodChoice(
        "schedule", None, (("", "8x64+4x16"),)
    )


@pytest.mark.parametrize(
    "text",
    ["", "@tokens", "tome@", "tome:", "tome:r", "tome:=2", "tome: =2", "tome:r=", "a b",
     "tome:r=1,,", "tome:r=1,r=2"],
)  # fmt: skip
def test_a_wrong_method_shows_the_form(text):
    with pytest.raises(RecipeError) as error:
        MethodChoice.parse(text)
    assert str(error.value) == f"a method looks like NAME[@SITE][:key=value,…], got '{text}'"


@pytest.mark.parametrize("number", ["nan", "inf", "-1e999", "9" * 5000])
def test_an_option_that_is_no_finite_number(number):
    with pytest.raises(RecipeError, match="an option of --method must be a finite number"):
        MethodChoice.parse(f"tome:r={number}")


words = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
numbers = st.integers().map(str) | st.floats(allow_nan=False, allow_infinity=False).map(str)
values = words.filter(lambda word: word not in ("nan", "inf", "infinity")) | numbers
named = st.dictionaries(words, values, min_size=1, max_size=3).map(
    lambda options: ",".join(f"{key}={value}" for key, value in options.items())
)
runs = st.lists(st.from_regex(r"[0-9]{1,3}x[0-9]{1,3}", fullmatch=True), min_size=1, max_size=3)
method_texts = st.builds(
    lambda name, site, options: name + (site and f"@{site}") + (options and f":{options}"),
    words, st.just("") | words, st.just("") | named | runs.map(",".join),
)  # fmt: skip
scheme_names = st.sampled_from(["none", "fp16", "p4", "p6", "w8a8s", "w4g32a8s"]) | st.builds(
    "w{}{}a{}".format,
    st.integers(1, 8),
    st.just("") | st.integers(1, 999).map("g{}".format),
    st.sampled_from([8, 16, 32]),
)
stage_texts = st.dictionaries(words, scheme_names, max_size=3).map(
    lambda stages: ["=".join(pair) for pair in stages.items()]
)
scheme_texts = st.builds(
    lambda default, stages: ",".join(default + stages) or "none",
    st.lists(scheme_names, max_size=1), stage_texts,
)  # fmt: skip
recipes = st.fixed_dictionaries(
    {},
    optional={
        "tokens": st.integers(1, 999),
        "methods": st.lists(method_texts, max_size=2).map(tuple),
        "quantize": scheme_texts,
        "tiles": st.builds("{}x{}".format, st.integers(1, 9), st.integers(1, 9)),
        "size": st.builds("{}x{}".format, st.integers(1, 999), st.integers(1, 999)),
        "block_size_bytes": st.integers(1, 10**9).map(spell_bytes),
    },
)


@given(method_texts)
def test_every_method_of_the_grammar_reads_back(text):
    choice = MethodChoice.parse(text)
    assert MethodChoice.parse(str(choice)) == choice
    assert choice.name == text.partition(":")[0].partition("@")[0]
    assert len(choice.options) == (text.count("=") or (":" in text))


@given(scheme_texts)
def test_every_text_of_schemes_reads_back(text):
    schemes = Schemes.parse(text)
    assert Schemes.parse(str(schemes)) == schemes
    for part in text.split(","):
        stage, _, name = part.rpartition("=")
        assert name == (schemes.of(stage) if stage and stage != "reduce" else name)
        assert name in schemes.names


@given(recipes)
def test_a_recipe_of_texts_is_stored_parsed_and_survives_json(given_as):
    recipe = Recipe(**given_as)
    assert all(isinstance(choice, MethodChoice) for choice in recipe.methods)
    assert isinstance(recipe.quantize, Schemes)
    text = dumps(recipe)
    assert read(Recipe, json.loads(text)) == recipe
    assert dumps(read(Recipe, json.loads(text))) == text
    assert hash(Recipe(**given_as)) == hash(recipe)


def test_json_has_texts():
    document = json.loads(dumps(Recipe(methods="tome@vision:r=2", quantize="head=fp16")))
    assert document["methods"] == ["tome@vision:r=2"]
    assert document["quantize"] == "none,head=fp16"


near = st.text("abcw48gs0123@:=,x.- \udcff", max_size=12)


@given(st.text(max_size=30) | near)
def test_any_text_is_refused_or_reads_back(text):
    for name in ("methods", "quantize", "tiles", "block_size_bytes"):
        try:
            recipe = Recipe(**{name: text})
        except RecipeError:
            continue
        (option,) = (o for o in options(Recipe) if o.name == name)
        value = getattr(recipe, name)
        again = tuple(map(str, value)) if option.repeated else option.show(value)
        assert Recipe(**{name: again}) == recipe


def test_the_defaults_of_options_are_those_of_the_recipe():
    listed = options(Recipe)
    shown = {o.name: o.default for o in listed if o.default is not None}
    assert Recipe(**shown) == Recipe()
    assert shown["block_size_bytes"] == "64MB"
    assert shown["tiles"] == "1x1"
    flags = {o.name: o.flag for o in listed}
    assert (flags["model"], flags["methods"], flags["tokens"]) == ("", "--method", "--tokens")


def test_stages_may_have_schemes_of_their_own():
    recipe = Recipe(quantize="fp16, decoder=w4g32a16,head=w8a16")
    stages = ("vision", "reduce", "decoder", "head")
    assert [recipe.scheme(s) for s in stages] == ["fp16", "none", "w4g32a16", "w8a16"]
    assert Recipe(quantize="decoder=w8a16").scheme("vision") == "none"
    assert Recipe(quantize="decoder=w8a16") == Recipe(quantize="none,decoder=w8a16")
    assert Recipe().quantize.names == ("none",)


@pytest.mark.parametrize("text", ["", "fp16,", "fp16,w8a16", "=fp16", "head=", "a=fp16,a=p4"])
def test_refuses_what_is_no_list_of_schemes(text):
    with pytest.raises(RecipeError, match=r"^quantize looks like SCHEME or SCHEME,STAGE=SCHEME"):
        Recipe(quantize=text)
