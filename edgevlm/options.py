"""Options of a command line, declared as the fields of a dataclass.

    tokens: int | None = field(default=None, metadata=option("Visual tokens kept.", "N", least=1))

`options` lists them for code that builds a command line. `Option.value` parses and checks a value,
so that the dataclass accepts the same values from Python and from a command line.
"""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from edgevlm.errors import RecipeError


@dataclass(frozen=True)
class Option:
    """The option of a field on a command line.

    Attributes:
        help: A sentence or two, without the default.
        metavar: Placeholder of a value in the help.
        flag: `--NAME`; empty for an argument without a name. None is derived from the field's name.
        parse: Converts a text to a value; applied to each value of a repeated option.
        show: Converts a value to the text that `parse` reads.
        least: Smallest number.
        most: Largest number.
        name: The field, filled in by `options`, as are all that follow.
        number: Whether the value is an integer, not a text.
        repeated: Whether it may be given several times.
        default: The field's default as a number or a text; None if there is none to show.
    """

    help: str
    metavar: str
    flag: str | None = None
    parse: Callable[[str], Any] | None = None
    show: Callable[[Any], str] = str
    least: int | None = None
    most: int | None = None
    name: str = ""
    number: bool = False
    repeated: bool = False
    default: int | str | None = None

    def value(self, raw: Any) -> Any:
        """The value of the field, from a text or from a parsed value.

        Raises:
            RecipeError: If it has the wrong type or form, or is out of its limits.
        """
        if raw is None and self.default is None and not self.repeated:
            return None
        try:
            if self.repeated:
                several = isinstance(raw, tuple | list)
                return tuple(self._one(item) for item in (raw if several else [raw]))
            value = self._one(raw)
        except (TypeError, ValueError) as cause:
            expected = "must be an integer" if self.number else f"looks like {self.metavar}"
            raise RecipeError(f"{self.name} {expected}, got {raw!r:.60}") from cause
        if self.least is not None and value < self.least:
            raise RecipeError(f"{self.name} must be at least {self.least}, got {value}")
        if self.most is not None and value > self.most:
            raise RecipeError(f"{self.name} must be at most {self.most}, got {value}")
        return value

    def _one(self, raw: Any) -> Any:
        """A single value; a parsed value goes through its text, so that it reads back."""
        if raw is None:
            raise TypeError
        if self.number:
            return operator.index(raw)
        text = self.show(raw) if self.parse and not isinstance(raw, str) else raw
        if not isinstance(text, str):
            raise TypeError
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise RecipeError("a name in the recipe is not valid UTF-8")
        return self.parse(text) if self.parse else text


def option(help: str, metavar: str, **further: Any) -> dict[str, Option]:
    """Metadata of a field that is an option."""
    return {"option": Option(help, metavar, **further)}


@cache
def options(kind: type) -> tuple[Option, ...]:
    """The options of a dataclass, in the order of its fields."""
    hints = typing.get_type_hints(kind)
    return tuple(
        _of_field(each.metadata["option"], each.name, hints[each.name], each.default)
        for each in fields(kind)
    )


def _of_field(option: Option, name: str, hint: Any, default: Any) -> Option:
    """A field's option, completed from its type and its default."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    none = default is None or default == ()
    return replace(
        option,
        name=name,
        flag="--" + name.replace("_", "-") if option.flag is None else option.flag,
        number=int in kinds and option.parse is None,
        repeated=typing.get_origin(hint) is tuple and ... in typing.get_args(hint),
        default=None if none else option.show(default) if option.parse else default,
    )
