"""Frozen dataclasses to JSON and back, strictly: a document must match the type exactly.

`read` refuses an unknown key (with the nearest known one), a missing key and a value of the wrong
type, and names the field: `plan.blocks[3].stage`. Floats in a file may be written as integers. A
field whose type depends on another key declares it: `field(metadata={"type": function})`, where the
function takes the JSON object and returns the type. A type with a method `parse` is written as the
text of `str`, and read by `parse`.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import json
import re
import stat
import sys
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from edgevlm.errors import EdgeVLMError

T = TypeVar("T")
# Most characters of a wrong value in an error, so that it stays one line.
LONGEST = 60
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Most objects, lists and items of a document: 32 MB of `{}` would take 0.8 GB.
MOST_VALUES = 1_000_000


class DocumentError(ValueError):
    """A document that does not match its type; the message names the field."""


def keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which no key appears twice; an `object_pairs_hook`.

    Raises:
        ValueError: Naming a key that does: which of its values counts, nobody can say.
    """
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} appears twice in one object")
    return document


def load_json(path: Path, most_bytes: int, **hooks: Any) -> Any:
    """Parse a JSON file that may come from anybody; a pipe is not opened.

    Args:
        path: The file.
        most_bytes: Its largest size.
        hooks: As those of `json.loads`.

    Raises:
        DocumentError: If it is larger, or has more than `MOST_VALUES` values.
        OSError: If it cannot be read, or is not a regular file.
        RecursionError: If it is nested too deeply.
        ValueError: If it is not JSON in UTF-8.
    """
    require_regular(path)
    if path.stat().st_size > most_bytes:
        raise DocumentError(f"{path.name} is too large, expected at most {most_bytes} bytes")
    return parse_json(path.read_text("utf-8"), path.name, **hooks)


def parse_json(text: str, name: str, **hooks: Any) -> Any:
    """`json.loads` for a text of anybody: values are counted before any is made.

    Args:
        text: The text.
        name: Its name, for errors.
        hooks: As those of `json.loads`.

    Raises:
        DocumentError: If it has more than `MOST_VALUES` values.
        RecursionError: If it is nested too deeply.
        ValueError: If it is not JSON.
    """
    if sum(map(text.count, "{[,")) > MOST_VALUES:
        raise DocumentError(f"{name} has more than {MOST_VALUES:,} values")
    return json.loads(text, **hooks)


def require_regular(path: Path) -> None:
    """Refuse a pipe or a device, which may never end.

    Raises:
        OSError: If it is one, or is not there.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder is refused when it is opened
        raise OSError(errno.EINVAL, "it is a pipe or a device, expected a file", str(path))


def to_document(value: Any) -> Any:
    """`value` (a dataclass, tuple, str, number, bool or None) as plain JSON types."""
    if hasattr(value, "parse"):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_document(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_document(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_document(item) for key, item in value.items()}
    return value


def dumps(value: Any) -> str:
    """Canonical JSON text: sorted keys, two spaces, a final newline; the same bytes every time."""
    text = json.dumps(to_document(value), indent=2, sort_keys=True, ensure_ascii=False)
    return text + "\n"


def read(kind: type[T], document: Any, where: str = "document") -> T:
    """Build the dataclass `kind` from parsed JSON.

    Raises:
        DocumentError: If the document does not match; one line that names the field.
    """
    return typing.cast(T, _read(kind, document, where))


def check_printable(document: Any, where: str) -> None:
    """Refuse texts that a terminal would obey; lines and tabs are text.

    Raises:
        DocumentError: Naming the place.
    """
    if isinstance(document, dict):
        for key, value in document.items():
            check_printable(key, where)
            check_printable(value, f"{where}.{key}")
    elif isinstance(document, list):
        for index, value in enumerate(document):
            if not isinstance(value, int | float):
                check_printable(value, f"{where}[{index}]")
    elif isinstance(document, str) and _CONTROL.search(document):
        raise _wrong(where, "text without control characters", document)


def shown(value: Any) -> str:
    """A parsed value for an error line: short, control characters escaped."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value if not isinstance(value, str) else value[:LONGEST])
    return text if len(text) < LONGEST else text[: LONGEST - 3] + "..."


def _read(kind: Any, document: Any, where: str) -> Any:
    if hasattr(kind, "parse"):
        return _parse(kind, document, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), document, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if document is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _read(inner, document, where)
    if origin is tuple:
        if not isinstance(document, list):
            raise _wrong(where, "a list", document)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_read(arguments[0], d, f"{where}[{i}]") for i, d in enumerate(document))
        if len(document) != len(arguments):
            raise _wrong(where, f"a list of {len(arguments)}", document)
        pairs = zip(arguments, document, strict=True)
        return tuple(_read(a, d, f"{where}[{i}]") for i, (a, d) in enumerate(pairs))
    if origin is dict:
        if not isinstance(document, dict):
            raise _wrong(where, "an object", document)
        return {key: _read(arguments[1], d, f"{where}.{key}") for key, d in document.items()}
    if kind is float and isinstance(document, int | float) and not isinstance(document, bool):
        if not abs(document) <= sys.float_info.max:  # also NaN, and integers without a float
            raise _wrong(where, "a finite number", document)
        return float(document)
    if not isinstance(document, kind) or (isinstance(document, bool) and kind is not bool):
        raise _wrong(where, {str: "text", int: "an integer"}.get(kind, kind.__name__), document)
    return document


def _parse(kind: Any, document: Any, where: str) -> Any:
    if not isinstance(document, str):
        raise _wrong(where, "text", document)
    try:
        return kind.parse(document)
    except (ValueError, EdgeVLMError) as cause:
        raise DocumentError(f"{where}: {cause}") from cause


def _read_dataclass(kind: type, document: Any, where: str) -> Any:
    if not isinstance(document, dict):
        raise _wrong(where, "an object", document)
    hints = _hints(kind)
    for key in document:
        if key not in hints:
            near = difflib.get_close_matches(key[:LONGEST], hints, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise DocumentError(f"{where} has an unknown key {shown(key)}{hint}")
    for key in hints:
        if key not in document:
            raise DocumentError(f"{where} lacks the key '{key}'")
    try:
        hints = hints | {key: choose(document) for key, choose in _choices(kind).items()}
        values = {key: _read(hint, document[key], f"{where}.{key}") for key, hint in hints.items()}
        return kind(**values)
    except DocumentError:
        raise
    except (ValueError, EdgeVLMError) as cause:
        raise DocumentError(f"{where}: {cause}") from cause


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@cache
def _choices(kind: type) -> dict[str, Any]:
    """Functions that choose the type of a field, by its name."""
    fields = dataclasses.fields(kind)
    return {field.name: field.metadata["type"] for field in fields if "type" in field.metadata}


def _wrong(where: str, expected: str, got: Any) -> DocumentError:
    return DocumentError(f"{where} must be {expected}, got {shown(got)}")
