"""Measured values that engines and profiles share: statistics, and where operators run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stat:
    """Measured values of one quantity.

    Attributes:
        n: Number of values.
        median: The median.
        p90: The 90th percentile.
    """

    n: int
    median: float
    p90: float


@dataclass(frozen=True)
class Operator:
    """One operator of a function, as the engine's own profiler timed it in a separate run.

    Attributes:
        block: The block.
        function: The function.
        name: Its name in the graph that ran.
        operator: Its type.
        module: Module of the model whose weights it reads, or of its inputs.
        device: Device on which it ran.
        calls: Calls in one answer.
        run_ms: Time of one call, the profiler's overhead included.
    """

    block: str
    function: str
    name: str
    operator: str
    module: str | None
    device: str
    calls: int
    run_ms: Stat


@dataclass(frozen=True)
class OperatorReport:
    """Devices of operators: the result of `Engine.operators`.

    Attributes:
        operators: Each operator with its time; None where the engine does not time them.
        placement: Number of operators on each device, over all functions.
        fallback: Number of operators that do not run on the device that the engine requests.
        not_measured: Why `operators`, or the module of each, is None.
    """

    operators: tuple[Operator, ...] | None
    placement: dict[str, int]
    fallback: int
    not_measured: dict[str, str]


def stat(values: Sequence[float]) -> Stat | None:
    """Number, median and 90th percentile; None without values."""
    return stat_of(values) if len(values) else None


def stat_of(values: Sequence[float]) -> Stat:
    """Number, median and 90th percentile of at least one value."""
    median, p90 = np.percentile(values, (50, 90))
    return Stat(len(values), round(float(median), 4), round(float(p90), 4))
