"""ExecuTorch's runtime, with XNNPACK on the CPU.

    program -> a method, prepared when it first runs -> over the host's arrays, nothing is copied in

A method writes its new rows into the caches that it is given, so past and present are one array.
XNNPACK packs its own copy of the matrices when a method is opened; `prefill` and `decode` of a
block hold two.

The runtime for Python is part of the library that exports and needs torch; apps link the runtime in
C++, which does not.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from numpy.typing import NDArray

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import Function
from edgevlm.errors import RuntimeLoadError
from edgevlm.libraries import first_line, silent
from edgevlm.runtimes.arrays import check_arrays

if importlib.util.find_spec("executorch") is None:  # it brings torch, so only when one is made
    raise RuntimeLoadError(
        "engine 'executorch' needs executorch; pip install 'edgevlm[executorch]'"
    )

NAME = "executorch"
SUMMARY = "ExecuTorch with XNNPACK, CPU"
TARGETS = ("executorch",)
DTYPES = {"f32": 6, "i32": 3}  # numbers of ScalarType in a program
BACKENDS = {"xnnpack": "XnnpackBackend", "coreml": "CoreMLBackend", "vulkan": "VulkanBackend"}
Array = NDArray[Any]


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


def backends() -> tuple[str, ...]:
    """Backends of this ExecuTorch, as `--backend` names them."""
    found = _runtime()[1]._get_registered_backend_names()
    return tuple(name for name, registered in BACKENDS.items() if registered in found)


class Engine:
    """Loads blocks of one bundle, and runs their functions over arrays that the host owns."""

    name = NAME
    budgets, best, openers = True, "own", 1

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """`threads` holds for the process: ExecuTorch has one pool.

        Raises:
            RuntimeLoadError: If the bundle is for a backend that is not here.
        """
        self.bundle = bundle
        wanted = dict(bundle.plan.requires.versions).get("backend", "xnnpack")
        if wanted not in backends():
            raise RuntimeLoadError(
                f"the bundle is for backend '{wanted}', which ExecuTorch has not here; it has:"
                f" {', '.join(backends())}"
            )
        self._torch, self._lib = _runtime()
        with _mute():  # the first use of the pool reads what the processor can do, aloud
            if threads is not None:
                self._lib._unsafe_reset_threadpool(threads)
            self.threads = int(self._lib._threadpool_get_thread_count())
        self._methods: dict[tuple[str, str], Any] = {}
        self._kept: Any = None
        self._arrays: dict[tuple[str, str], Mapping[str, Array]] = {}
        self._given: dict[tuple[str, str], list[Any]] = {}

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function's inputs and outputs, by name; they must stay alive.

        Raises:
            RuntimeLoadError: If an array is missing or has another shape or dtype.
        """
        made = self.bundle.plan.block(block).function(function)
        check_arrays(block, made, arrays)
        self._arrays[block, function] = arrays
        given = [self._torch.from_numpy(arrays[spec.name]) for spec in made.inputs]
        self._given[block, function] = given

    def forms(self, block: str) -> tuple[str, ...]:
        """One: a program has its matrices packed when it first runs."""
        return ("own",)

    def prepare(self, block: str, function: str, form: str) -> None:
        """Keep the block with the fewest weights open, aside from what is loaded.

        XNNPACK's programs share the memory that they compute in, and it goes with the last of them:
        a block that comes alone would take it anew at each run.
        """
        least = min(self.bundle.plan.blocks, key=lambda planned: planned.weights_bytes)
        if block == least.name and self._kept is None:
            self.load(block, function)
            self.run(block, function)
            self._kept = self._methods.pop((block, function))

    def load(self, block: str, function: str | None = None, form: str = "own") -> None:
        """Open the program of a block, once for each method; nothing happens if it is open.

        XNNPACK packs the matrices of a method when it first runs.

        Raises:
            BundleError: If the file was changed.
            RuntimeLoadError: If ExecuTorch refuses it.
        """
        planned = self.bundle.plan.block(block)
        functions = [f for f in planned.functions if function in (None, f.name)]
        functions = [f for f in functions if (block, f.name) not in self._methods]
        if not functions:
            return
        (path,) = set(self.bundle.files_of(planned).values())
        for wanted in functions:
            try:
                with _mute():
                    program = self._lib._load_for_executorch(str(path))
                    meta = program.method_meta(wanted.name)
            except Exception as cause:
                line = first_line(cause)
                raise RuntimeLoadError(f"{block} does not load: {line}") from cause
            _check_signature(meta, wanted, block)
            self._methods[block, wanted.name] = program

    def run(self, block: str, function: str) -> None:
        """Run a loaded function over its bound arrays.

        Raises:
            RuntimeLoadError: If ExecuTorch cannot run it.
        """
        given, arrays = self._given[block, function], self._arrays[block, function]
        try:
            made = self._methods[block, function].run_method(function, given, False)
        except Exception as cause:
            line = first_line(cause)
            raise RuntimeLoadError(f"{block}.{function} does not run: {line}") from cause
        outputs = self.bundle.plan.block(block).function(function).outputs
        own = [t.name for t in outputs if not t.name.startswith("present_")]
        # Caches that were written come first; they are the host's arrays already.
        for name, tensor in zip(own, made[-len(own) :], strict=True):
            arrays[name][:] = tensor.numpy()

    def sync(self, block: str) -> None:
        """Nothing: the host's arrays are the cache."""

    def unload(self, block: str, function: str | None = None) -> None:
        """Give the memory of a block, or of one function of it, back."""
        for key in [key for key in list(self._methods) if key[0] == block]:
            if function in (None, key[1]):
                del self._methods[key]


def _check_signature(meta: Any, function: Function, block: str) -> None:
    """Refuse a program whose inputs and outputs are not the manifest's: binding trusts them."""
    got = [
        (tuple(info.sizes()), info.dtype())
        for info in (
            *(meta.input_tensor_meta(i) for i in range(meta.num_inputs())),
            *(meta.output_tensor_meta(i) for i in range(meta.num_outputs())),
        )
    ]
    present = [t for t in function.outputs if t.name.startswith("present_")]
    own = [t for t in function.outputs if not t.name.startswith("present_")]
    wanted = [(t.shape, DTYPES[t.dtype]) for t in (*function.inputs, *present, *own)]
    if got != wanted:
        raise RuntimeLoadError(
            f"{block}.{function.name}: inputs and outputs of the program are not the manifest's"
        )


@contextmanager
def _mute() -> Iterator[None]:
    """ExecuTorch writes to the process's standard error, past Python."""
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
