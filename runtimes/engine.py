"""Blocks of a bundle as engines and loops see them.

    Engine   the class `Engine` of each `on_<name>`: bind, load, run, unload
    Blocks   the interface of loops: `residency.ResidentBlocks`, or `StreamedBlocks` with a budget

A function's inputs and outputs are numpy arrays of the host. An engine whose own memory the host
can address offers it in `buffers`; an engine whose memory the host cannot address copies in `run`
and `sync`, as `on_coreml` does with its states. (Separate calls for copies, `upload` and
`download`, will be added with the first engine that needs them.)
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.measures import OperatorReport
from edgevlm.errors import EdgeVLMError, RuntimeLoadError
from edgevlm.libraries import bounded_threads, first_line
from edgevlm.registry import ENGINES
from edgevlm.runtimes.arrays import Array, check_arrays
from edgevlm.runtimes.inspection import Inspection

Key = tuple[str, str]  # block, function
PRIVATE = "private"  # the load mode of every engine: each function has its own weights
# Calls of an engine over a block or a function of it, and what is said where one fails.
CALLS = {
    "bind": "cannot be bound", "load_modes": "does not load", "build": "cannot be prepared",
    "is_built": "cannot be prepared", "prepare": "does not load", "load": "does not load",
    "run": "does not run", "sync": "does not run", "unload": "cannot be unloaded",
}  # fmt: skip
# Calls over a whole bundle.
WHOLE_CALLS = {
    "__init__": "cannot be opened",
    "operators": "cannot time operators",
    "inspect": "cannot report on the bundle",
}


@contextmanager
def reported(where: str, what: str) -> Iterator[None]:
    """An error of a library inside the body becomes one line: where, what, and its own reason.

    Raises:
        RuntimeLoadError: From any error but ours.
    """
    try:
        yield
    except EdgeVLMError:
        raise
    except Exception as cause:  # libraries raise anything, MemoryError and bare Exception too
        raise RuntimeLoadError(f"{where} {what}: {first_line(cause)}") from cause


class Engine(ABC):
    """Loads blocks of one bundle, and runs their functions over arrays.

    An engine overrides the defaults here; generic code uses these members alone. The class methods
    work without the engine's library, so an engine imports it at first use. Whatever a library
    raises in one of `CALLS` and `WHOLE_CALLS` leaves it as a `RuntimeLoadError` of one line.

    Attributes:
        name: Its name on the command line.
        targets: Targets whose bundles it runs.
        rank: The default is the engine of highest rank among those that run a target here.
        budgets: Whether functions can be loaded and unloaded one by one, as a budget needs.
        resident_mode: The load mode of resident blocks without a budget.
        inspects_pictures: Whether `inspect` uses pictures.
        threads: Threads of a run; None if the engine does not report them.
        parallel_loads: Loads that may run in parallel.
        compile_ms: By block, time of its one-time compilation on this machine.
        largest: By function and kind of operation, the largest value rounded to float16.
    """

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ()
    rank: ClassVar[int] = 10
    budgets: ClassVar[bool] = False
    resident_mode: ClassVar[str] = PRIVATE
    inspects_pictures: ClassVar[bool] = False

    def __init_subclass__(cls, **further: Any) -> None:
        """Have every call of an engine end in an error of ours."""
        super().__init_subclass__(**further)
        for names, wrap in ((CALLS, _of_block), (WHOLE_CALLS, _of_bundle)):
            for name in names.keys() & vars(cls).keys():
                method = vars(cls)[name]
                bare = method.__func__ if isinstance(method, classmethod) else method
                call = wrap(bare, names[name])
                setattr(cls, name, classmethod(call) if bare is not method else call)

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.bundle, self.parallel_loads = bundle, 1
        self.threads = None if threads is None else bounded_threads(threads)
        self.compile_ms: dict[str, float | None] = {}
        self.largest: dict[Key, dict[str, float]] = {}
        self.arrays: dict[Key, Mapping[str, Array]] = {}

    @classmethod
    @abstractmethod
    def summary(cls) -> str:
        """One line with its release; called only if it is available."""

    @classmethod
    def unavailable(cls) -> str | None:
        """The reason why it cannot run here, in one line; None if it can."""
        return None

    @classmethod
    def backends(cls) -> tuple[str, ...]:
        """Backends of this build, as `export --backend` names them."""
        return ()

    @classmethod
    def inspect(cls, bundle: Bundle, pictures: Sequence[Path], prompt: str) -> Inspection:
        """Report on a bundle of its targets, also where the engine cannot run.

        Args:
            bundle: The bundle.
            pictures: Images to run one by one, for an engine that `inspects_pictures`.
            prompt: The question about each image.

        Raises:
            EdgeVLMError: If a file or a picture cannot be read.
        """
        return Inspection()

    def buffers(self, block: str, function: str) -> Mapping[str, Array]:
        """Arrays of the engine's own for tensors of a function; the host makes all others.

        The host asks for them where it would allocate an array between blocks. An output and the
        next block's input share one array, that of the output. The cache and the logits belong to
        the host.
        """
        return {}

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function's inputs and outputs, by name; they must stay alive.

        Raises:
            RuntimeLoadError: If an array is missing or has another shape or dtype.
        """
        check_arrays(block, self.bundle.plan.block(block).function(function), arrays)
        self.arrays[block, function] = arrays

    def load_modes(self, block: str) -> tuple[str, ...]:
        """Ways to load a block that are worth measuring."""
        return (PRIVATE,)

    def is_built(self, block: str) -> bool:
        """Whether `build` has nothing to do."""
        return True

    def build(self, block: str) -> None:
        """Build the files that loads of a block read, once on this machine; takes memory."""
        return

    def prepare(self, block: str, function: str, mode: str) -> None:
        """One-time preparation for loads of this mode; its memory is not freed."""
        return

    @abstractmethod
    def load(self, block: str, function: str | None = None, mode: str = PRIVATE) -> None:
        """Load a block, or a function of it; no effect if it is loaded.

        Raises:
            BundleError: If a file was changed.
            RuntimeLoadError: If the engine cannot load the artifact.
        """

    @abstractmethod
    def run(self, block: str, function: str) -> None:
        """Run a loaded function over its bound arrays.

        Raises:
            RuntimeLoadError: If the run fails.
        """

    def sync(self, block: str) -> None:
        """Copy a block's cache to the host's arrays, where the engine keeps it elsewhere."""
        return

    @abstractmethod
    def unload(self, block: str, function: str | None = None) -> None:
        """Free the memory of a block, or of a function of it."""

    def operators(self, calls: Mapping[Key, int]) -> OperatorReport | str:
        """Device and time of each operator, or the reason why they are not known.

        Args:
            calls: Runs of each function in one answer; bound arrays hold the last answer's values.

        Raises:
            EdgeVLMError: If they cannot be measured.
        """
        return f"engine '{self.name}' reports no operators"


def _of_block(method: Callable[..., Any], what: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, block: str, *further: Any, **named: Any) -> Any:
        first = named.get("function", further[0] if further else None)
        with reported(f"{block}.{first}" if isinstance(first, str) else block, what):
            return method(self, block, *further, **named)

    return call


def _of_bundle(method: Callable[..., Any], what: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(owner: Any, *further: Any, **named: Any) -> Any:
        with reported(f"engine '{owner.name}'", what):
            return method(owner, *further, **named)

    return call


class Blocks(Protocol):
    """The interface of loops: bind everything, open, then run in the order of the plan's passes."""

    engine: Engine
    loads: int
    keeps_all: bool  # whether every function stays in memory

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function."""

    def open(self) -> None:
        """Load resident blocks; called once all functions are bound."""

    def expect(self, pass_name: str, count: int | None) -> None:
        """Announce `count` passes of this name; None is an unknown number.

        It is a hint for loading: steps of a pass may be skipped, and other passes may follow.
        """

    def run(self, block: str, function: str) -> None:
        """Run a function, after loading it if it is not in memory."""

    def run_each(self, block: str, function: str, turns: Iterable[object]) -> None:
        """Run a function once for each of `turns`, over one load.

        The host fills the function's arrays before it yields a turn, and reads them after it.
        """

    def shortage(self, size: int) -> int:
        """Bytes by which `size` more, until the next run, would exceed a budget; 0 without one.

        Functions are evicted before it is said that there is too little.
        """

    def settle(self) -> None:
        """Count what the process took beside its blocks since they were opened.

        Raises:
            PlanError: If the budget is too small for it.
        """


def find_engine(name: str) -> type[Engine]:
    """The engine called `name`.

    Raises:
        RecipeError: If no engine has this name; the message has the nearest name.
        RuntimeLoadError: If it cannot run here.
    """
    engine: type[Engine] = ENGINES.load(name).Engine
    if (reason := engine.unavailable()) is not None:
        raise RuntimeLoadError(reason)
    return engine
