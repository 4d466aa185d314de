"""An engine's report on a bundle: a document for programs, tables for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows under heads, with a title above and a note below."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Inspection:
    """Keys of the document of `edgevlm inspect`, and the same values as tables.

    `not_measured` has the reason for each missing key.
    """

    document: dict[str, Any] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    not_measured: dict[str, str] = field(default_factory=dict)
