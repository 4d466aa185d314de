"""ONNX Runtime on the CPU.

Every shape is static, so each function is bound once to the host's arrays, and a call allocates
nothing: the cache's past and present are one array, written in place. All sessions of a process
share one arena.

A function is loaded in one of three modes:

    private       the session packs its matrices into its own memory
    prepacked     matrices are packed once on this machine and mapped (`prepacked`); functions
                  share equal ones
    shared_graph  one session for all blocks with equal graphs, over the bundle's weights, mapped
                  and never packed (`shared_graphs`): loads at once, runs slower
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.functions import Block, Function
from edgevlm.bundle.measures import OperatorReport
from edgevlm.errors import BundleError, RecipeError, RuntimeLoadError
from edgevlm.libraries import first_line, needs, processor_lines
from edgevlm.runtimes import engine
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.built import build_ms, discard
from edgevlm.runtimes.on_onnxruntime.library import import_onnxruntime
from edgevlm.runtimes.on_onnxruntime.prepacked import is_prepacked, prepacked_graphs
from edgevlm.runtimes.on_onnxruntime.shared_graphs import (
    MappedWeight,
    Maps,
    operator_kinds,
    without_weights,
)

PREPACKED, SHARED_GRAPH = "prepacked", "shared_graph"
UNEQUAL = {"Conv", "MatMulNBits"}  # computed differently where their weights are inputs
UNPACKED = ("fp16", "w8a32")  # a session unpacks the weights to float32 when it opens
MISSING = needs("engine 'onnxruntime'", "onnxruntime", "onnxruntime")
# Bundles are checked against the manifest, so a session logs fatal errors alone.
_LOG_FATAL = 4


class Engine(engine.Engine):
    """Loads blocks of one bundle, and runs their functions over arrays that the host owns.

    `compile_ms` is the time of packing a block's matrices.
    """

    name, targets, budgets = "onnxruntime", ("onnx",), True
    resident_mode = PREPACKED

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.ort = import_onnxruntime()
        super().__init__(bundle, threads)
        self.threads = self.parallel_loads = threads or _cores()
        self._packing = threading.Lock()
        self._sessions: dict[tuple[str, str], Any] = {}
        self._shared: dict[bytes, Any] = {}  # sessions by hash of their graph without weights
        self._common: dict[Path, tuple[Any, tuple[MappedWeight, ...]]] = {}
        self._maps = Maps()
        self._weights: dict[tuple[str, str], Mapping[str, Array]] = {}
        self._bound: dict[tuple[str, str], Any] = {}

    @classmethod
    def summary(cls) -> str:
        """The release, and where it runs."""
        return f"ONNX Runtime {import_onnxruntime().__version__}, CPU"

    @classmethod
    def unavailable(cls) -> str | None:
        """The missing library."""
        installed = importlib.util.find_spec("onnxruntime") is not None
        return None if installed else MISSING

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function's inputs and outputs, by name; they must stay alive.

        Raises:
            RuntimeLoadError: If an array is missing or has another shape or dtype.
        """
        super().bind(block, function, arrays)
        self._bound.pop((block, function), None)

    def load_modes(self, block: str) -> tuple[str, ...]:
        """Modes worth measuring for a block.

        A shared session would unpack float16 and 8-bit weights at each run. Where activations are
        rounded, all modes must agree to the last bit, as a difference would grow with each layer.
        The protection of 8-bit products against overflow changes matrices when a session opens.
        """
        planned = self.bundle.plan.block(block)
        scheme = self.bundle.plan.recipe.scheme(planned.stage)
        if scheme in UNPACKED:
            return (PREPACKED,)
        if scheme != "none":
            kinds = set[str]().union(*map(operator_kinds, self.bundle.files_of(planned).values()))
            if kinds & UNEQUAL or _adds_in_16_bits():
                return (PREPACKED,)
        return (PREPACKED, SHARED_GRAPH)

    def is_built(self, block: str) -> bool:
        """Whether the block's matrices are packed on this machine."""
        return is_prepacked(self.bundle, self.bundle.plan.block(block))

    def build(self, block: str) -> None:
        """Pack the block's matrices, unless they are packed on this machine.

        Raises:
            BundleError: If a file was changed.
        """
        self.graphs(self.bundle.plan.block(block), PREPACKED)

    def prepare(self, block: str, function: str, mode: str) -> None:
        """Open the session that blocks with equal graphs share.

        Raises:
            BundleError: If a file was changed.
            RuntimeLoadError: If ONNX Runtime cannot load the artifact.
        """
        if mode == SHARED_GRAPH:
            self._session(self.bundle.plan.block(block), function)

    def load(self, block: str, function: str | None = None, mode: str = engine.PRIVATE) -> None:
        """Open a block, or one function of it; no effect if it is open.

        If the prepacked graph cannot be written or opened, the session packs the matrices itself.

        Raises:
            BundleError: If a file was changed.
            RuntimeLoadError: If ONNX Runtime cannot load an artifact.
        """
        planned = self.bundle.plan.block(block)
        names = [function] if function else [f.name for f in planned.functions]
        names = [name for name in names if (block, name) not in self._sessions]
        if not names:
            return
        if mode == SHARED_GRAPH:
            self._share(planned, names)
            return
        for name in names:
            self._sessions[block, name] = self._open_one(planned, name, mode)

    def _open_one(self, block: Block, name: str, mode: str) -> Any:
        """A session of one function."""
        path, options = self.graphs(block, mode)[name], self.options()
        if path == self.bundle.path / block.function(name).file:
            session = _open(path, options, f"{block.name}.{name}")
        else:
            options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            try:
                session = _open(path, options, f"{block.name}.{name}")
            except RuntimeLoadError:  # built by this release, and not opened by it
                discard(path.parents[1])
                return self._open_one(block, name, engine.PRIVATE)
        _check_signature(session, block.function(name), block.name)
        return session

    def graphs(self, block: Block, mode: str) -> dict[str, Path]:
        """The file to open for each function: the bundle's graph, or the prepacked one.

        Raises:
            BundleError: If a file was changed.
        """
        if mode == PREPACKED:
            try:
                with self._packing:  # once for all functions of a block
                    folder = prepacked_graphs(self.bundle, block, self.options)
                self.compile_ms[block.name] = build_ms(folder)
                return {f.name: folder / f.name / f"{block.name}.onnx" for f in block.functions}
            except (BundleError, RecipeError):
                raise
            except Exception:  # no space, no permission; ONNX Runtime has its own types
                pass
        return self.bundle.files_of(block)

    def options(self) -> Any:
        """Settings of every session."""
        _share_arena()
        options = self.ort.SessionOptions()
        options.log_severity_level = _LOG_FATAL
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Weights that are not mapped stay out of the arena: one inside a large free region would
        # make the arena allocate another.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        # Memory patterns take a second region of the arena, and save no time.
        options.enable_mem_pattern = False
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Each session has its own threads: with shared ones, ONNX Runtime refuses sessions that
        # other code opens in this process. Threads that spin after a run would hold the cores that
        # the next block and its load need (docs/benchmarks.md has the cost).
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if _adds_in_16_bits():
            options.add_session_config_entry("session.x64quantprecision", "1")
        return options

    def _session(self, block: Block, function: str) -> tuple[Any, tuple[MappedWeight, ...]]:
        """The session of a function's graph without weights, and the function's weights."""
        path = self.bundle.files_of(block)[function]
        if path not in self._common:
            graph, weights = without_weights(path)
            digest = hashlib.sha256(graph).digest()
            if digest not in self._shared:
                name = f"{block.name}.{function}"
                self._shared[digest] = _open(graph, self.options(), name)
            _check_signature(self._shared[digest], block.function(function), block.name, weights)
            self._common[path] = self._shared[digest], weights
        return self._common[path]

    def _share(self, block: Block, names: list[str]) -> None:
        """Load functions in mode `shared_graph`: map their weights."""
        paths = [self.bundle.path / entry.path for entry in self.bundle.weights_of(block)]
        files = {path.name: path for path in paths}
        for name in names:
            session, weights = self._session(block, name)
            self._weights[block.name, name] = self._maps.weights(weights, files)
            self._sessions[block.name, name] = session

    def run(self, block: str, function: str) -> None:
        """Run a loaded function over its bound arrays."""
        key = (block, function)
        if key not in self._bound:
            self._bound[key] = self._bind(key)
        self._sessions[key].run_with_iobinding(self._bound[key])

    def operators(self, calls: Mapping[engine.Key, int]) -> OperatorReport:
        """Time every operator, in separate sessions with the profiler on."""
        from edgevlm.runtimes.on_onnxruntime.operators import time_operators

        return time_operators(self, calls)

    def unload(self, block: str, function: str | None = None) -> None:
        """Free the memory of a block, or of one function of it."""
        for key in [key for key in list(self._sessions) if key[0] == block]:
            if function in (None, key[1]):
                self._bound.pop(key, None)
                self._weights.pop(key, None)
                del self._sessions[key]

    def _bind(self, key: tuple[str, str]) -> Any:
        planned = self.bundle.plan.block(key[0]).function(key[1])
        arrays, binding = self.arrays[key], self._sessions[key].io_binding()
        for specs, bind in (
            (planned.inputs, binding.bind_input),
            (planned.outputs, binding.bind_output),
        ):
            for spec in specs:
                array = arrays[spec.name]
                bind(spec.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in self._weights.get(key, {}).items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding


def _open(graph: Path | bytes, options: Any, name: str) -> Any:
    try:
        return import_onnxruntime().InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
    except Exception as cause:
        line = first_line(cause)
        raise RuntimeLoadError(f"{name} does not load: {line}") from cause


def _check_signature(
    session: Any, function: Function, block: str, weights: Sequence[MappedWeight] = ()
) -> None:
    """Check that inputs and outputs are those of the manifest, as binding trusts them."""
    types = {"f32": "tensor(float)", "i32": "tensor(int32)"}
    bound = {weight.name for weight in weights}
    for nodes, specs in (
        (session.get_inputs(), function.inputs),
        (session.get_outputs(), function.outputs),
    ):
        got = {n.name: (n.type, *n.shape) for n in nodes if n.name not in bound}
        expected = {spec.name: (types[spec.dtype], *spec.shape) for spec in specs}
        for name in sorted(got.keys() | expected.keys()):
            if got.get(name) != expected.get(name):
                raise RuntimeLoadError(
                    f"{block}.{function.name}: '{name}' is {got.get(name)} in the artifact,"
                    f" {expected.get(name)} in the manifest"
                )


@cache
def _share_arena() -> None:
    """One arena for the working memory of all sessions of the process."""
    from onnxruntime.capi.onnxruntime_pybind11_state import OrtMemoryInfo, OrtMemType

    ort = import_onnxruntime()
    memory = OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, OrtMemType.DEFAULT)
    # 1: grow by the requested size, not to twice the size.
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


@cache
def _adds_in_16_bits() -> bool:
    """Whether sums of int8 products may overflow: on x86 without VNNI. The cure doubles the time.

    An unknown processor counts as one of those.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    flags = {flag for line in processor_lines() for flag in line.split()}
    return not {"avx512_vnni", "avx_vnni", "avxvnni"} & flags


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
