"""What an engine says of a bundle that it does not run: numbers for programs, tables for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows under heads, with a line above and one below."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Inspection:
    """Keys of the document of `edgevlm inspect`, and the same as tables.

    `not_measured` says why a key is not there.
    """

    document: dict[str, Any] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    not_measured: dict[str, str] = field(default_factory=dict)
