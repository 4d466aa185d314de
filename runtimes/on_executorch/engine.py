"""ExecuTorch's runtime, with XNNPACK on the CPU.

    program -> a method, packed at its first run -> runs over the host's arrays, without a copy

A method writes its new rows into the given caches, so past and present are one array. XNNPACK packs
its own copy of the matrices for each method; `prefill` and `decode` of a block hold two.

The Python runtime is part of the library that exports, and needs torch; apps link the C++ runtime,
which does not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.functions import Function
from edgevlm.bundle.measures import OperatorReport
from edgevlm.errors import RuntimeLoadError
from edgevlm.libraries import muted, needs, processors, silent
from edgevlm.runtimes import engine
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.inspection import Inspection
from edgevlm.runtimes.on_executorch.operators import count_operators, kernel_tables

DTYPES = {"f32": 6, "i32": 3}  # numbers of ScalarType in a program
BACKENDS = {"xnnpack": "XnnpackBackend", "coreml": "CoreMLBackend", "vulkan": "VulkanBackend"}
MISSING = needs("engine 'executorch'", "executorch", "executorch")


@cache
def _runtime() -> tuple[Any, Any]:
    """torch and ExecuTorch's runtime for Python."""
    try:
        with silent():
            import torch
            from executorch.extension.pybindings import portable_lib
    except ImportError as cause:
        raise RuntimeLoadError(f"engine 'executorch' does not load here: {cause}") from cause
    return torch, portable_lib


class Engine(engine.Engine):
    """Loads blocks of one bundle, and runs their functions over arrays that the host owns.

    XNNPACK packs the matrices of a method at its first run.
    """

    name, targets, budgets = "executorch", ("executorch",), True

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """`threads` applies to the process, as ExecuTorch has one thread pool.

        Raises:
            RuntimeLoadError: If this ExecuTorch lacks the bundle's backend.
        """
        super().__init__(bundle, threads)
        backend = dict(bundle.plan.requires.versions).get("backend", "xnnpack")
        if backend not in self.backends():
            raise RuntimeLoadError(
                f"this ExecuTorch build lacks the bundle's backend '{backend}'; available:"
                f" {', '.join(self.backends())}"
            )
        self._torch, self._lib = _runtime()
        with muted():  # the first use of the pool prints warnings about the processor
            pool = int(self._lib._threadpool_get_thread_count())
            if (self.threads or min(pool, processors())) != pool:
                self._lib._unsafe_reset_threadpool(self.threads or processors())
            self.threads = int(self._lib._threadpool_get_thread_count())
        self._methods: dict[tuple[str, str], Any] = {}
        self._kept_open: Any = None
        self._inputs: dict[tuple[str, str], list[Any]] = {}

    @classmethod
    def summary(cls) -> str:
        """The library and its backend."""
        return "ExecuTorch with XNNPACK, CPU"

    @classmethod
    def unavailable(cls) -> str | None:
        """The missing library."""
        installed = importlib.util.find_spec("executorch") is not None
        return None if installed else MISSING

    @classmethod
    def backends(cls) -> tuple[str, ...]:
        """Backends of this ExecuTorch, as `--backend` names them."""
        available = _runtime()[1]._get_registered_backend_names()
        return tuple(name for name, registered in BACKENDS.items() if registered in available)

    @classmethod
    def inspect(cls, bundle: Bundle, pictures: Sequence[Path], prompt: str) -> Inspection:
        """Operators that the backend computes; needs no ExecuTorch."""
        return kernel_tables(bundle)

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function's inputs and outputs, by name; they must stay alive.

        Raises:
            RuntimeLoadError: If an array is missing or has another shape or dtype.
        """
        super().bind(block, function, arrays)
        planned = self.bundle.plan.block(block).function(function)
        tensors = [self._torch.from_numpy(arrays[spec.name]) for spec in planned.inputs]
        self._inputs[block, function] = tensors

    def prepare(self, block: str, function: str, mode: str) -> None:
        """Keep the block with the fewest weights open, apart from the loaded ones.

        XNNPACK's programs share a workspace that is freed with the last of them: without this, a
        block that is loaded alone would allocate it at each run.
        """
        least = min(self.bundle.plan.blocks, key=lambda planned: planned.weights_bytes)
        if block == least.name and self._kept_open is None:
            self.load(block, function)
            self.run(block, function)
            self._kept_open = self._methods.pop((block, function))

    def load(self, block: str, function: str | None = None, mode: str = engine.PRIVATE) -> None:
        """Open the program of a block, once for each method; no effect if it is open.

        XNNPACK packs the matrices of a method at its first run.

        Raises:
            BundleError: If the file was changed.
            RuntimeLoadError: If ExecuTorch cannot load it.
        """
        planned = self.bundle.plan.block(block)
        functions = [f for f in planned.functions if function in (None, f.name)]
        functions = [f for f in functions if (block, f.name) not in self._methods]
        if not functions:
            return
        (path,) = set(self.bundle.files_of(planned).values())
        for spec in functions:
            with engine.reported(f"{block}.{spec.name}", "does not load"), muted():
                program = self._lib._load_for_executorch(str(path))
                meta = program.method_meta(spec.name)
                _check_signature(meta, spec, block)
            self._methods[block, spec.name] = program

    def run(self, block: str, function: str) -> None:
        """Run a loaded function over its bound arrays.

        Raises:
            RuntimeLoadError: If the run fails.
        """
        inputs, arrays = self._inputs[block, function], self.arrays[block, function]
        outputs = self._methods[block, function].run_method(function, inputs, False)
        results = self.bundle.plan.block(block).function(function).results
        names = [tensor.name for tensor in results]
        # Written caches come first; they are the host's arrays already.
        for name, tensor in zip(names, outputs[-len(names) :], strict=True):
            arrays[name][:] = tensor.numpy()

    def unload(self, block: str, function: str | None = None) -> None:
        """Free the memory of a block, or of one function of it."""
        for key in [key for key in list(self._methods) if key[0] == block]:
            if function in (None, key[1]):
                del self._methods[key]

    def operators(self, calls: Mapping[engine.Key, int]) -> OperatorReport:
        """Count the operators by the backend and by portable kernels; none is timed."""
        return count_operators(self.bundle, calls)


def _check_signature(meta: Any, function: Function, block: str) -> None:
    """Check that inputs and outputs are those of the manifest, as binding trusts them.

    Caches come before the results, those first that a copy at the end writes.
    """
    inputs = [meta.input_tensor_meta(index) for index in range(meta.num_inputs())]
    outputs = [meta.output_tensor_meta(index) for index in range(meta.num_outputs())]
    caches = [tensor for cache, tensor in function.cached() if cache.output]
    given = [(tuple(info.sizes()), info.dtype()) for info in (*inputs, *outputs)]
    wanted = [(t.shape, DTYPES[t.dtype]) for t in (*function.inputs, *caches, *function.results)]
    written = slice(len(function.inputs), len(function.inputs) + len(caches))
    for sides in (given, wanted):
        sides[written] = sorted(sides[written])
    if given != wanted:
        raise RuntimeLoadError(
            f"{block}.{function.name}: inputs and outputs of the program differ from the manifest;"
            " export again"
        )
