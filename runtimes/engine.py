"""Blocks of a bundle as engines and loops see them.

Engine   what an engine does: bind, load, run, unload
Blocks   what a loop asks for: `residency.ResidentBlocks`, or `StreamedBlocks` within a budget
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class Engine(Protocol):
    """What runs functions; `on_onnxruntime.Engine` documents each call."""

    name: str
    budgets: bool  # whether functions can come and go one by one
    best: str  # the form for a block that stays where memory is no matter
    openers: int  # threads that may load at a time

    def forms(self, block: str) -> tuple[str, ...]:
        """Ways to open a block."""

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function."""

    def prepare(self, block: str, function: str, form: str) -> None:
        """Do once what loads of this form need; it takes memory that is not given back."""

    def load(self, block: str, function: str | None = None, form: str = "own") -> None:
        """Open a block, or a function of it."""

    def run(self, block: str, function: str) -> None:
        """Run a function over its arrays."""

    def sync(self, block: str) -> None:
        """Bring the host's arrays of a block's cache up to date."""

    def unload(self, block: str, function: str | None = None) -> None:
        """Close a block, or a function of it."""


class Blocks(Protocol):
    """What a loop asks for: bind everything, open, then run in the order of the plan's passes."""

    engine: Engine
    loads: int
    keeps_all: bool  # whether every function is in memory

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function."""

    def open(self) -> None:
        """All functions are bound: load what has to be there."""

    def begin(self, name: str, passes: int | None) -> None:
        """So many passes of this name follow; None is as many as come."""

    def run(self, block: str, function: str) -> None:
        """Run a function, loaded or not."""
