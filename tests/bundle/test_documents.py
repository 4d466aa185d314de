from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.bundle import documents
from edgevlm.bundle.documents import DocumentError, dumps, read, shown
from edgevlm.bundle.kinds.vlm import VlmHost
from edgevlm.bundle.plan import Plan
from edgevlm.recipe import Recipe


@dataclass(frozen=True)
class Inner:
    name: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    flag: bool
    ratio: float
    inner: tuple[Inner, ...]
    pair: tuple[int, str]
    maybe: int | None = None
    table: dict[str, int] = dataclasses.field(default_factory=dict)


GOOD = {
    "flag": True, "ratio": 1, "inner": [{"name": "a", "sizes": [1, 2]}], "pair": [3, "x"],
    "maybe": None, "table": {"k": 1},
}  # fmt: skip


def test_reads_nested_types():
    value = read(Outer, GOOD)
    assert value == Outer(True, 1.0, (Inner("a", (1, 2)),), (3, "x"), None, {"k": 1})
    assert isinstance(value.ratio, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flg": True}, "document has an unknown key 'flg'; did you mean 'flag'?"),
        ({"flag": 1}, "document.flag must be bool, got 1"),
        ({"ratio": "1"}, "document.ratio must be float, got '1'"),
        ({"ratio": True}, "document.ratio must be float, got True"),
        ({"ratio": float("nan")}, "document.ratio must be a finite number, got nan"),
        ({"ratio": float("inf")}, "document.ratio must be a finite number, got inf"),
        ({"ratio": 10**400}, "document.ratio must be a finite number, got 1000"),
        ({"inner": {}}, "document.inner must be a list, got an object"),
        ({"inner": [{"name": "a"}]}, "document.inner[0] lacks the key 'sizes'"),
        ({"inner": [{"name": 1, "sizes": []}]}, "document.inner[0].name must be text, got 1"),
        ({"inner": [{"name": "", "sizes": [True]}]}, "sizes[0] must be an integer, got True"),
        ({"inner": [[]]}, "document.inner[0] must be an object, got a list"),
        ({"pair": [1]}, "document.pair must be a list of 2, got a list"),
        ({"maybe": 1.5}, "document.maybe must be an integer, got 1.5"),
        ({"table": []}, "document.table must be an object, got a list"),
        ({"table": {"k": "v"}}, "document.table.k must be an integer, got 'v'"),
    ],
)  # fmt: skip
def test_names_the_field_that_does_not_fit(change, message):
    with pytest.raises(DocumentError) as error:
        read(Outer, GOOD | change)
    assert message in str(error.value)


def test_an_error_line_stays_short_and_shows_control_characters():
    for value in ("x" * 10**6, [1] * 10**6, 10**4000, {"k" * 10**6: 1}, "\x1b[31m\n" * 50):
        assert len(shown(value)) <= documents.LONGEST
        assert shown(value).isprintable()
    with pytest.raises(DocumentError) as error:
        read(Inner, {"k" * 10**6: 1})
    assert len(str(error.value)) < 200


def test_a_type_that_depends_on_another_key():
    @dataclass(frozen=True)
    class Either:
        kind: str
        value: object = dataclasses.field(metadata={"type": lambda d: {"i": int}[d["kind"]]})

    assert read(Either, {"kind": "i", "value": 3}) == Either("i", 3)
    with pytest.raises(DocumentError, match=r"document.value must be an integer, got 'x'"):
        read(Either, {"kind": "i", "value": "x"})


def test_the_types_own_rules_name_the_field():
    document = documents.to_document(Recipe()) | {"tokens": 0}
    with pytest.raises(DocumentError, match="recipe: tokens must be at least 1, got 0"):
        read(Recipe, document, "recipe")


def test_a_type_with_a_parser_is_a_text():
    document = documents.to_document(Recipe(quantize="head=fp16"))
    assert document["quantize"] == "none,head=fp16"
    with pytest.raises(
        DocumentError, match=r"^recipe\.quantize: 'int8' is not a quantization scheme"
    ):
        read(Recipe, document | {"quantize": "int8"}, "recipe")
    with pytest.raises(DocumentError, match=r"^recipe\.methods\[0\] must be text, got 5"):
        read(Recipe, document | {"methods": [5]}, "recipe")


def test_text_is_canonical():
    text = dumps({"b": 1, "a": ("é", None)})
    assert text == '{\n  "a": [\n    "é",\n    null\n  ],\n  "b": 1\n}\n'


names = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=8)
LEAVES = {
    str: names,
    int: st.integers(-(2**40), 2**40),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
}


def values(kind, /, **given):
    """Any value of a type of the manifest: each field of it, those with a default too."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.name not in given}
        return st.builds(kind, **{name: values(hint) for name, hint in fields.items()}, **given)
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        if Ellipsis in arguments:
            return st.lists(values(arguments[0]), max_size=2).map(tuple)
        return st.tuples(*map(values, arguments))
    if type(None) in arguments:
        return st.none() | values(arguments[0])
    return LEAVES[kind]


recipes = st.builds(
    Recipe, model=names, tokens=st.none() | st.integers(1, 999),
    methods=st.lists(st.sampled_from(["tome@vision:r=2", "strided"]), max_size=2).map(tuple),
    quantize=st.sampled_from(["none", "w8a8,head=fp16"]), context=st.none() | st.integers(1, 9999),
)  # fmt: skip
plans = values(Plan, kind=st.just("vlm"), recipe=recipes, host=values(VlmHost))


@given(plans)
def test_a_plan_survives_json(made):
    text = dumps(made)
    again = read(Plan, json.loads(text))
    assert again == made
    assert dumps(again) == text
