"""The JSON Schema of a profile, from its dataclasses: `python -m edgevlm.profiling.schema`.

Types, `required` and "no other key" come from the fields, descriptions from the docstrings.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from typing import Any

from edgevlm.profiling.document import SCHEMA_VERSION, Profile

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema() -> dict[str, Any]:
    """The schema, draft 2020-12."""
    definitions: dict[str, Any] = {}
    top = _object(Profile, definitions)
    top["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edgevlm profile",
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


def text() -> str:
    """The schema as the file has it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, descriptions = typing.get_type_hints(kind), _attributes(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    properties = {
        name: _type(hints[name], definitions) | _described(descriptions, name) for name in fields
    }
    return {
        "description": inspect.cleandoc(kind.__doc__ or "").splitlines()[0],
        "type": "object",
        "properties": properties,
        "required": fields,
        "additionalProperties": False,
    }


def _described(descriptions: dict[str, str], name: str) -> dict[str, str]:
    return {"description": descriptions[name]} if name in descriptions else {}


def _type(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if hasattr(kind, "parse"):  # written as text, see bundle/documents
        return {"type": "string"}
    if dataclasses.is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        if name not in definitions:
            definitions[name] = {}  # before its fields, which may refer to it
            definitions[name] = _object(typing.cast(type, kind), definitions)
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (a for a in arguments if a is not type(None))
        return {"anyOf": [_type(inner, definitions), {"type": "null"}]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions)}
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is tuple:
        items = [_type(a, definitions) for a in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    return {"type": PLAIN[kind]}


def _attributes(kind: type) -> dict[str, str]:
    """Descriptions of a docstring's section `Attributes:`, and the help of fields with options."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
    entries = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", section, re.M)
    helps = {f.name: f.metadata["option"].help for f in dataclasses.fields(kind) if f.metadata}
    return {name: " ".join(words.split()) for name, words in entries} | helps


if __name__ == "__main__":
    print(text(), end="")
