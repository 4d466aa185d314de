"""What is said of other people's libraries, and how they are left."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from edgevlm.errors import InputError, RuntimeLoadError
from edgevlm.libraries import first_line, replaced, require


@pytest.mark.parametrize(
    ("message", "line"),
    [("one", "one"), ("\n one\ntwo", "one"), ("", "ValueError"), (" \n ", "ValueError")],
)
def test_an_error_without_a_message_says_its_type(message, line):
    assert first_line(ValueError(message)) == line


def test_a_missing_library_names_its_extra():
    wanted = "a step needs Thing; pip install 'edgevlm[video]'"
    for kind in (RuntimeLoadError, InputError):
        with pytest.raises(kind, match=f"^{re.escape(wanted)}$") as error:
            require("a step", "Thing", "no_such_module", "video", kind)
        assert isinstance(error.value.__cause__, ImportError)
    assert require("a step", "json", "json", "video").loads("1") == 1


def test_a_replaced_attribute_is_back_after_an_error_too():
    class Library:
        @staticmethod
        def rule(x):
            return x

    before = vars(Library)["rule"]
    other = staticmethod(lambda x: -x)
    with replaced(Library, "rule", other):
        assert Library.rule(1) == -1
    assert vars(Library)["rule"] is before
    with pytest.raises(ZeroDivisionError), replaced(Library, "rule", other):
        _ = 1 / 0
    assert vars(Library)["rule"] is before
    owner = SimpleNamespace(value=1)
    with replaced(owner, "value", 2):
        assert owner.value == 2
    assert owner.value == 1
