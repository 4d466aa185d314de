"""ONNX Runtime on the CPU.

Every shape is static, so each function is bound once to the host's arrays and a call allocates
nothing: the cache's past and present are one array, written in place. Weight files are mapped by
ONNX Runtime; each session of a block packs its own copy of the matrices for speed, so `prefill` and
`decode` of a block hold two in memory (one on disk).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgevlm.bundle import Bundle
from edgevlm.errors import RuntimeLoadError
from edgevlm.plan import Function
from edgevlm.runtimes._arrays import check_arrays

try:
    import onnxruntime as ort
except ImportError as cause:
    raise RuntimeLoadError(
        "engine 'onnxruntime' is not installed; pip install 'edgevlm[onnxruntime]'"
    ) from cause

NAME = "onnxruntime"
SUMMARY = f"ONNX Runtime {ort.__version__}, CPU"
TARGETS = ("onnx",)
# Ours are checked by the manifest; a session says only what is fatal.
_LOG_FATAL = 4


class Engine:
    """Loads blocks of one bundle, and runs their functions over arrays that the host owns."""

    name = NAME

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.bundle = bundle
        self.threads = threads or _cores()
        self._sessions: dict[tuple[str, str], Any] = {}
        self._arrays: dict[tuple[str, str], Mapping[str, NDArray[Any]]] = {}
        self._bound: dict[tuple[str, str], Any] = {}

    def bind(self, block: str, function: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Fix the arrays of a function's inputs and outputs, by name; they must stay alive.

        Raises:
            RuntimeLoadError: If an array is missing or has another shape or dtype.
        """
        made = self.bundle.plan.block(block).function(function)
        check_arrays(block, made, arrays)
        self._arrays[block, function] = arrays
        self._bound.pop((block, function), None)

    def load(self, block: str) -> None:
        """Open the sessions of a block; nothing happens if they are open.

        Raises:
            BundleError: If a file was changed.
            RuntimeLoadError: If ONNX Runtime refuses an artifact.
        """
        if any(name == block for name, _ in self._sessions):
            return
        for function, path in self.bundle.files_of(self.bundle.plan.block(block)).items():
            try:
                session = ort.InferenceSession(
                    path, self.options(), providers=["CPUExecutionProvider"]
                )
            except Exception as cause:
                line = str(cause).strip().splitlines()[0]
                raise RuntimeLoadError(f"{block}.{function} does not load: {line}") from cause
            _check_signature(session, self.bundle.plan.block(block).function(function), block)
            self._sessions[block, function] = session

    def options(self) -> Any:
        """Settings of every session."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _LOG_FATAL
        # Each session has its own threads. Left spinning after a run, they hold the cores that the
        # next block needs (docs/benchmarks.md has what that costs).
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if _adds_in_16_bits():
            options.add_session_config_entry("session.x64quantprecision", "1")
        return options

    def run(self, block: str, function: str) -> None:
        """Run a loaded function over its bound arrays."""
        key = (block, function)
        if key not in self._bound:
            self._bound[key] = self._bind(key)
        self._sessions[key].run_with_iobinding(self._bound[key])

    def sync(self, block: str) -> None:
        """Nothing: the host's arrays are the cache."""

    def unload(self, block: str) -> None:
        """Give the block's memory back."""
        for key in [key for key in self._sessions if key[0] == block]:
            self._bound.pop(key, None)
            del self._sessions[key]

    def _bind(self, key: tuple[str, str]) -> Any:
        made = self.bundle.plan.block(key[0]).function(key[1])
        arrays, binding = self._arrays[key], self._sessions[key].io_binding()
        for specs, bind in ((made.inputs, binding.bind_input), (made.outputs, binding.bind_output)):
            for spec in specs:
                array = arrays[spec.name]
                bind(spec.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding


def _check_signature(session: Any, function: Function, block: str) -> None:
    """Refuse an artifact whose inputs and outputs are not the manifest's: binding trusts them."""
    types = {"f32": "tensor(float)", "i32": "tensor(int32)"}
    for nodes, specs in (
        (session.get_inputs(), function.inputs),
        (session.get_outputs(), function.outputs),
    ):
        got = {node.name: (node.type, *node.shape) for node in nodes}
        wanted = {spec.name: (types[spec.dtype], *spec.shape) for spec in specs}
        for name in sorted(got.keys() | wanted.keys()):
            if got.get(name) != wanted.get(name):
                raise RuntimeLoadError(
                    f"{block}.{function.name}: '{name}' is {got.get(name)} in the artifact,"
                    f" {wanted.get(name)} in the manifest"
                )


@cache
def _adds_in_16_bits() -> bool:
    """Whether products of 8 bits may overflow: on x86 without VNNI. The cure takes twice the time.

    Where the processor cannot be asked, it is taken for one of those.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8").split()
    except OSError:
        return True
    return not {"avx512_vnni", "avx_vnni", "avxvnni"} & {*flags}


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
