"""Core ML itself, on a Mac: the kernels of its CPU, GPU and Neural Engine.

    package -> compiled once, kept in the cache folder by its files' hashes -> models -> states

A block's functions are models of one compiled package and use one state. The host's arrays `past_*`
are a copy of that state: it is filled from them before the first run, and they are brought up to
date by `sync` and by `unload`.

What was checked where there is no Mac: the calls, against coremltools 9.0's own signatures and a
stand-in that executes the packages (`on_coreml_reference`). On a Mac it was never run.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle.cache import made_once, making_ms
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import Block
from edgevlm.errors import RuntimeLoadError
from edgevlm.libraries import first_line, silent

if platform.system() != "Darwin":
    raise RuntimeLoadError(
        f"engine 'coreml' is Apple's own and needs macOS 15, this is {platform.system()};"
        " engine 'coreml-reference' executes the same programs here"
    )

with silent():
    import coremltools as ct

NAME = "coreml"
SUMMARY = "Core ML of this Mac: CPU, GPU and Neural Engine"
TARGETS = ("coreml",)
UNITS = {"reduce": ct.ComputeUnit.CPU_ONLY}  # all others may go anywhere; see docs/bundle.md
DEVICES = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "neural_engine",
}
Array = NDArray[Any]


class Engine:
    """Loads blocks of one bundle, and runs their functions over arrays that the host owns."""

    name = NAME
    budgets, best, openers = False, "own", 1

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Core ML chooses its threads itself."""
        self.bundle = bundle
        self.compile_ms: dict[str, float | None] = {}  # by block, once
        self._models: dict[tuple[str, str], Any] = {}
        self._states: dict[str, Any] = {}
        self._arrays: dict[tuple[str, str], Mapping[str, Array]] = {}

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function's inputs and outputs, by name; they must stay alive."""
        self._arrays[block, function] = arrays

    def forms(self, block: str) -> tuple[str, ...]:
        """One."""
        return ("own",)

    def prepare(self, block: str, function: str, form: str) -> None:
        """Nothing."""

    def load(self, block: str, function: str | None = None, form: str = "own") -> None:
        """Open all models of a block; nothing happens if they are open.

        Raises:
            BundleError: If a file was changed.
            RuntimeLoadError: If Core ML refuses the package.
        """
        if any(name == block for name, _ in self._models):
            return
        planned = self.bundle.plan.block(block)
        folder, units = compiled(self.bundle, planned), _units(planned)
        self.compile_ms[block] = making_ms(folder)
        for wanted in planned.functions:
            try:
                model = ct.models.CompiledMLModel(str(folder), units, wanted.name)
            except Exception as cause:
                line = first_line(cause)
                raise RuntimeLoadError(f"{block}.{wanted.name} does not load: {line}") from cause
            self._models[block, wanted.name] = model

    def run(self, block: str, function: str) -> None:
        """Run a loaded function over its bound arrays.

        Raises:
            RuntimeLoadError: If Core ML cannot run it.
        """
        model, arrays = self._models[block, function], self._arrays[block, function]
        made = self.bundle.plan.block(block).function(function)
        given = {t.name: arrays[t.name] for t in made.inputs if not t.name.startswith("past_")}
        try:
            if block not in self._states and len(given) < len(made.inputs):
                self._states[block] = model.make_state()
                for name, array in self._caches(block).items():
                    self._states[block].write_state(name, array.astype(np.float16))
            found = model.predict(given, self._states.get(block))
        except Exception as cause:
            line = first_line(cause)
            raise RuntimeLoadError(f"{block}.{function} does not run: {line}") from cause
        for spec in made.outputs:
            if not spec.name.startswith("present_"):
                arrays[spec.name][:] = found[spec.name]

    def sync(self, block: str) -> None:
        """Copy a block's state to the arrays `past_*` of the host."""
        if block in self._states:
            for name, array in self._caches(block).items():
                array[:] = self._states[block].read_state(name)

    def unload(self, block: str, function: str | None = None) -> None:
        """Give the block's memory back; the host's arrays keep its cache."""
        self.sync(block)
        self._states.pop(block, None)
        for key in [key for key in self._models if key[0] == block]:
            del self._models[key]

    def _caches(self, block: str) -> dict[str, Array]:
        """The host's arrays of a block's cache, by the name of the state."""
        bound = [arrays for (name, _), arrays in self._arrays.items() if name == block]
        return {k[5:]: v for arrays in bound for k, v in arrays.items() if k.startswith("past_")}


def compiled(bundle: Bundle, block: Block) -> Path:
    """The block's package as Core ML loads it; made once, then found by its files' hashes.

    Raises:
        BundleError: If a file was changed.
        RuntimeLoadError: If the package does not compile.
    """
    (package,) = set(bundle.files_of(block).values())
    inside = package.relative_to(bundle.path).as_posix()
    hashes = [f"{f.path} {f.sha256}" for f in bundle.plan.files if f.path.startswith(inside)]

    def make(work: Path) -> Path:
        try:
            return Path(ct.models.utils.compile_model(str(package), f"{work}/made.mlmodelc"))
        except Exception as cause:
            line = first_line(cause)
            raise RuntimeLoadError(f"{block.name} does not compile: {line}") from cause

    return made_once("coreml", "\n".join(sorted(hashes)), make, ".mlmodelc")


def placement(bundle: Bundle) -> dict[str, dict[str, int]]:
    """For each `block.function`: how many operations Core ML would run on which device.

    Functions whose plan Core ML does not tell are left out.
    """
    found = {}
    for block in bundle.plan.blocks:
        path = str(compiled(bundle, block))
        plan = ct.models.compute_plan.MLComputePlan.load_from_path(path, _units(block))
        for name, function in plan.model_structure.program.functions.items():
            usages = map(
                plan.get_compute_device_usage_for_mlprogram_operation, function.block.operations
            )
            devices = [type(u.preferred_compute_device).__name__ for u in usages if u is not None]
            if devices:
                counts = Counter(DEVICES[device] for device in devices)
                found[f"{block.name}.{name}"] = dict(sorted(counts.items()))
    return found


def _units(block: Block) -> Any:
    return UNITS.get(block.stage, ct.ComputeUnit.ALL)
