"""Blocks of a bundle as engines and loops see them.

    Engine   the class `Engine` of each `on_<name>`: bind, load, run, unload
    Blocks   what a loop asks for: `residency.ResidentBlocks`, or `StreamedBlocks` within a budget

A function's inputs and outputs are numpy arrays of the host. An engine with memory of its own that
the host can address says so in `buffers`; one whose memory the host cannot address copies in `run`
and `sync`, as `on_coreml` does with its states. (Calls for copies of their own, `upload` and
`download`, come with the first engine that gains by them.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.measures import OperatorReport
from edgevlm.errors import RuntimeLoadError
from edgevlm.registry import ENGINES
from edgevlm.runtimes.arrays import Array, check_arrays
from edgevlm.runtimes.inspection import Inspection

Key = tuple[str, str]  # block, function
PRIVATE = "private"  # the load mode of every engine: what is loaded belongs to one function


class Engine(ABC):
    """Loads blocks of one bundle, and runs their functions over arrays.

    An engine says what differs from the defaults here; generic code asks for nothing else. What is
    known without a bundle is known without the engine's library too: a main file imports it when it
    is used.

    Attributes:
        name: As on the command line.
        targets: Targets whose bundles it runs.
        rank: Of the engines that run a target here, the one of the highest rank is the default.
        budgets: Whether functions can come and go one by one.
        resident_mode: The load mode for a block that stays, where memory is no matter.
        inspects_pictures: Whether `inspect` has a use for pictures.
        threads: Threads of a run; None where the engine does not say.
        parallel_loads: Threads that may load at a time.
        compile_ms: By block, what was made once on this machine before it could be loaded.
        largest: By function and kind of operation, the largest number that was rounded to float16.
    """

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ()
    rank: ClassVar[int] = 10
    budgets: ClassVar[bool] = False
    resident_mode: ClassVar[str] = PRIVATE
    inspects_pictures: ClassVar[bool] = False

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.bundle, self.threads, self.parallel_loads = bundle, threads, 1
        self.compile_ms: dict[str, float | None] = {}
        self.largest: dict[Key, dict[str, float]] = {}
        self.arrays: dict[Key, Mapping[str, Array]] = {}

    @classmethod
    @abstractmethod
    def summary(cls) -> str:
        """One line with its release; asked where it can run."""

    @classmethod
    def unavailable(cls) -> str | None:
        """Why it cannot run here, in one line; None where it can."""
        return None

    @classmethod
    def backends(cls) -> tuple[str, ...]:
        """Backends of this build, as `export --backend` names them."""
        return ()

    @classmethod
    def inspect(cls, bundle: Bundle, pictures: Sequence[Path], prompt: str) -> Inspection:
        """What can be said of a bundle of its targets, also where it cannot run.

        Args:
            bundle: The bundle.
            pictures: To be run, one after another, by an engine that `inspects_pictures`.
            prompt: What is asked about each.

        Raises:
            EdgeVLMError: If a file or a picture cannot be read.
        """
        return Inspection()

    def buffers(self, block: str, function: str) -> Mapping[str, Array]:
        """Arrays of the engine's own for tensors of a function; the host makes all others.

        They are asked for where the host would make an array between blocks. What one block gives
        and the next takes is one array, that of the block that gives it. The cache and the logits
        are the host's.
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

    def prepare(self, block: str, function: str, mode: str) -> None:
        """Do once what loads of this mode need; it takes memory that is not given back."""
        return

    @abstractmethod
    def load(self, block: str, function: str | None = None, mode: str = PRIVATE) -> None:
        """Load a block, or a function of it; nothing happens if it is loaded.

        Raises:
            BundleError: If a file was changed.
            RuntimeLoadError: If the engine refuses the artifact.
        """

    @abstractmethod
    def run(self, block: str, function: str) -> None:
        """Run a loaded function over its bound arrays.

        Raises:
            RuntimeLoadError: If it cannot be run.
        """

    def sync(self, block: str) -> None:
        """Bring the host's arrays of a block's cache up to date."""
        return

    @abstractmethod
    def unload(self, block: str, function: str | None = None) -> None:
        """Give the memory of a block, or of a function of it, back."""

    def operators(self, calls: Mapping[Key, int]) -> OperatorReport | str:
        """Where operators run and what each takes, or why that is not known.

        Args:
            calls: How often one answer runs each function; its arrays have what that left.

        Raises:
            EdgeVLMError: If they cannot be found out.
        """
        return f"engine '{self.name}' reports no operators"


class Blocks(Protocol):
    """What a loop asks for: bind everything, open, then run in the order of the plan's passes."""

    engine: Engine
    loads: int
    keeps_all: bool  # whether every function is in memory

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function."""

    def open(self) -> None:
        """All functions are bound: load what has to be there."""

    def expect(self, pass_name: str, count: int | None) -> None:
        """So many passes of this name follow; None is as many as come.

        It is a hint for what to load: steps of a pass may be left out, and other ones may come.
        """

    def run(self, block: str, function: str) -> None:
        """Run a function, loaded or not."""


def find_engine(name: str) -> type[Engine]:
    """The engine called `name`.

    Raises:
        RecipeError: If there is none; the message has the nearest name.
        RuntimeLoadError: If it cannot run here.
    """
    found: type[Engine] = ENGINES.load(name).Engine
    if (reason := found.unavailable()) is not None:
        raise RuntimeLoadError(reason)
    return found
