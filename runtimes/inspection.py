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


@dataclass(frozen=True)
class OperatorTimes:
    """One operator of a function in runs of its own.

    Attributes:
        block: The block.
        function: The function.
        name: Its name in the graph that ran.
        operator: Its kind.
        module: Module of the model whose weights it reads; None where that is not known.
        device: Where it ran.
        calls: In one answer.
        times_ms: Of each run.
    """

    block: str
    function: str
    name: str
    operator: str
    module: str | None
    device: str
    calls: int
    times_ms: tuple[float, ...]


@dataclass(frozen=True)
class Placement:
    """Where operators run.

    Attributes:
        operators: Each, with its times; None where the engine does not time them.
        devices: How many run on each device, over all functions.
        fallback: How many of them are not where the engine wants them.
        not_measured: Why `operators`, or the module of each, is None.
    """

    operators: tuple[OperatorTimes, ...] | None
    devices: dict[str, int]
    fallback: int
    not_measured: dict[str, str] = field(default_factory=dict)
