"""Texts of `plan`, `export` and `inspect` that differ between kinds, a file for each kind.

plan_document(plan)       further keys of the JSON document
plan_lines(plan, cost)    lines of the text; the cost is that of a method of site `tokens`
export_text(plan)         a few words
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def printed(kind: str) -> ModuleType:
    """The module of a kind."""
    return import_module(f"{__name__}.{kind}")
