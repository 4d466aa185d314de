"""A bundle, an engine and a budget become the loop of the bundle's kind.

    bundle -> engine of its target -> blocks, resident or streamed -> loop

Each kind of bundle names its loop (`LOOP`), a module of `runtimes.loops` with two names:

    open_loop                   the class of the loop (`loops.contract.Loop`), built from a bundle
                                and its blocks; it binds its arrays, then opens the blocks
    bind_arrays(plan, blocks)   allocates the arrays between blocks, and binds each function
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import Plan
from edgevlm.errors import PlanError, RuntimeLoadError
from edgevlm.libraries import memory_bytes
from edgevlm.registry import KINDS, engine_for
from edgevlm.runtimes import values
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.engine import Blocks, Engine, find_engine
from edgevlm.runtimes.loops.contract import Loop
from edgevlm.runtimes.residency.resident import ResidentBlocks
from edgevlm.units import megabytes, parse_bytes

# Arrays up to here are allocated to measure what the smallest budget is.
MEASURED_BYTES = 10**9


def load_loop(
    path: str | Path,
    engine: str | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Loop:
    """Open a bundle and load its blocks, for callers that use the loop's steps directly.

    Args:
        path: The bundle.
        engine: Name of an engine; None selects the one of highest rank for the target.
        threads: Threads of the engine; None uses all cores.
        memory: Memory budget of this process in bytes, or a text such as `300MB`; None keeps
            every block in memory.
        progress: Called at the start of each slow step.

    Raises:
        BundleError: If the bundle is damaged.
        InputError: If an argument has another type, or is out of range.
        PlanError: If `memory` is too small; the message has the smallest budget.
        RuntimeLoadError: If no engine can run it.
    """
    if engine is not None:
        values.text("engine", engine)
    if threads is not None:
        threads = values.whole("threads", threads, least=1)
    if memory is not None and not isinstance(memory, str):
        memory = values.whole("memory", memory, least=1)
    bundle = Bundle.open(values.path("the bundle", path))
    target = bundle.plan.recipe.target
    kind = find_engine(engine_for(target) if engine is None else engine)
    if target not in kind.targets:
        raise RuntimeLoadError(
            f"engine '{kind.name}' does not run target '{target}'; it runs:"
            f" {', '.join(kind.targets) or 'none'}"
        )
    budget = parse_bytes(memory) if isinstance(memory, str) else memory
    _check_room(bundle.plan, budget)
    return open_loop(bundle, make_blocks(bundle, kind(bundle, threads), budget, progress))


def make_blocks(
    bundle: Bundle,
    engine: Engine,
    budget_bytes: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Blocks:
    """The blocks of a bundle: all in memory, or as many as a budget for the process allows.

    Raises:
        RuntimeLoadError: If there is a budget, and the engine does not support budgets.
    """
    if budget_bytes is None:
        return ResidentBlocks(bundle.plan, engine)
    if not engine.budgets:
        raise RuntimeLoadError(
            f"engine '{engine.name}' does not support memory budgets; leave out --memory"
        )
    from edgevlm.runtimes.residency.measure import build_apart, measured
    from edgevlm.runtimes.residency.streamed import StreamedBlocks

    timings = measured(bundle, engine.name, engine.threads or 1, progress)
    build_apart(bundle, engine, progress)
    return StreamedBlocks(bundle.plan, engine, timings, budget_bytes)


def array_bytes(plan: Plan[Any]) -> int:
    """Bytes that the arrays between blocks take at least: all caches, and one function's others."""
    caches = others = 0
    for block in plan.blocks:
        most = 0
        for function in block.functions:
            # An array that the block reads alone is another block's.
            cached = sum(tensor.bytes for cache, tensor in function.cached() if cache.output)
            most = max(most, cached)
            others = max(others, sum(tensor.bytes for tensor in function.fed))
        caches += most
    return caches + others


def _check_room(plan: Plan[Any], budget: int | None) -> None:
    """Refuse arrays that are larger than the budget, or than this machine, before any is there."""
    needed = array_bytes(plan)
    if budget is not None and needed > max(budget, MEASURED_BYTES):
        raise PlanError(
            f"the bundle's arrays take {megabytes(needed)}, the budget is {megabytes(budget)};"
            " export with a shorter --context"
        )
    machine = memory_bytes()
    if machine is not None and needed > machine:
        raise RuntimeLoadError(
            f"the bundle's arrays take {megabytes(needed)}, this machine has {megabytes(machine)};"
            " export with a shorter --context"
        )


def loop_class(kind: str) -> type[Loop]:
    """The class of the loop of a kind."""
    found: type[Loop] = _module(kind).open_loop
    return found


def open_loop(bundle: Bundle, blocks: Blocks) -> Loop:
    """The loop of a bundle's kind over its blocks.

    Raises:
        PlanError: If the blocks have a budget that is too small.
    """
    return loop_class(bundle.plan.kind)(bundle, blocks)


def bind_arrays(plan: Plan[Any], engine: Engine) -> None:
    """Bind every function to arrays without a loop, to run functions one by one."""
    _module(plan.kind).bind_arrays(plan, _Touching(engine))


@dataclass(frozen=True)
class _Touching:
    """Binds arrays to an engine after touching their pages, so that no run has page faults."""

    engine: Engine

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function."""
        for array in arrays.values():
            array[...] = 0
        self.engine.bind(block, function, arrays)


def _module(kind: str) -> ModuleType:
    return import_module(f"edgevlm.runtimes.loops.{KINDS.load(kind).LOOP}")
