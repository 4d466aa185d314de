"""Core ML on a Mac: the kernels of its CPU, GPU and Neural Engine.

    package -> compiled once into the cache folder, named by its files' hashes -> models -> states

A block's functions are models of one compiled package and use one state. The host's arrays of a
cache are a copy of that state: it is filled from them before the first run, and they are brought up
to date by `sync` and by `unload`.

NOT TESTED ON A MAC. The calls were tested against coremltools 9.0's own signatures and a stand-in
that executes the packages (`on_coreml_reference`).
"""

from __future__ import annotations

import importlib.util
import platform
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.functions import Block
from edgevlm.libraries import needs, require, silent
from edgevlm.runtimes import engine
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.built import build_ms, build_once, discard
from edgevlm.runtimes.inspection import Inspection, Table

UNITS = {"reduce": "CPU_ONLY"}  # other stages may use any unit; see docs/bundle.md
DEVICES = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "neural_engine",
}
MISSING = needs("engine 'coreml'", "coremltools", "coreml")


class Engine(engine.Engine):
    """Loads blocks of one bundle, and runs their functions over arrays that the host owns.

    Core ML chooses its threads itself; `compile_ms` is the time of compiling a block, once.
    """

    name, targets, rank = "coreml", ("coreml",), 20

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle)
        self._models: dict[tuple[str, str], Any] = {}
        self._states: dict[str, Any] = {}

    @classmethod
    def summary(cls) -> str:
        """Where it runs."""
        return "Core ML of this Mac: CPU, GPU and Neural Engine"

    @classmethod
    def unavailable(cls) -> str | None:
        """The reason: another system, or a missing library."""
        if platform.system() != "Darwin":
            return (
                f"engine 'coreml' needs macOS 15, this is {platform.system()}; engine"
                " 'coreml-reference' executes the same programs here"
            )
        return None if importlib.util.find_spec("coremltools") else MISSING

    @classmethod
    def inspect(cls, bundle: Bundle, pictures: Sequence[Path], prompt: str) -> Inspection:
        """Devices of the operations on this Mac; elsewhere the reason why they are unknown."""
        if (reason := cls.unavailable()) is not None:
            return Inspection(not_measured={"placement": reason})
        placed = placement(bundle)
        rows = tuple((n, *(str(c.get(d, 0)) for d in DEVICES.values())) for n, c in placed.items())
        heads = ("function", "cpu", "gpu", "neural engine")
        title = "Operations by device, as this Mac's Core ML plans them:"
        return Inspection({"placement": placed}, (Table(heads, rows, title),))

    def load(self, block: str, function: str | None = None, mode: str = engine.PRIVATE) -> None:
        """Open all models of a block; no effect if they are open.

        Raises:
            BundleError: If a file was changed.
            RuntimeLoadError: If Core ML cannot load the package.
        """
        if any(name == block for name, _ in self._models):
            return
        planned = self.bundle.plan.block(block)
        folder, units = compiled(self.bundle, planned), _units(planned)
        self.compile_ms[block] = build_ms(folder)
        for spec in planned.functions:
            with engine.reported(f"{block}.{spec.name}", "does not load"):
                try:
                    model = _library().models.CompiledMLModel(str(folder), units, spec.name)
                except Exception:
                    discard(folder)  # the next load compiles it again
                    raise
            self._models[block, spec.name] = model

    def run(self, block: str, function: str) -> None:
        """Run a loaded function over its bound arrays.

        Raises:
            RuntimeLoadError: If the run fails.
        """
        model, arrays = self._models[block, function], self.arrays[block, function]
        planned = self.bundle.plan.block(block).function(function)
        inputs = {tensor.name: arrays[tensor.name] for tensor in planned.passed_in}
        if block not in self._states and len(inputs) < len(planned.inputs):
            self._states[block] = model.make_state()
            for name, array in self._caches(block).items():
                self._states[block].write_state(name, array.astype(np.float16))
        outputs = model.predict(inputs, self._states.get(block))
        for tensor in planned.passed_out:
            arrays[tensor.name][:] = outputs[tensor.name]

    def sync(self, block: str) -> None:
        """Copy a block's state to the arrays of the host's cache."""
        if block in self._states:
            for name, array in self._caches(block).items():
                array[:] = self._states[block].read_state(name)

    def unload(self, block: str, function: str | None = None) -> None:
        """Free the block's memory; the host's arrays keep its cache."""
        self.sync(block)
        self._states.pop(block, None)
        for key in [key for key in self._models if key[0] == block]:
            del self._models[key]

    def _caches(self, block: str) -> dict[str, Array]:
        """The host's arrays of a block's cache, by the name of the state."""
        return {
            cache.name: arrays[cache.input]
            for (name, function), arrays in self.arrays.items()
            if name == block
            for cache in self.bundle.plan.block(block).function(function).caches
            if cache.name
        }


def compiled(bundle: Bundle, block: Block) -> Path:
    """The block's package, compiled; built once and cached by its files' hashes.

    Raises:
        BundleError: If a file was changed.
        RuntimeLoadError: If the package does not compile.
    """
    (package,) = set(bundle.files_of(block).values())
    inside = package.relative_to(bundle.path).as_posix()
    hashes = [f"{f.path} {f.sha256}" for f in bundle.plan.files if f.path.startswith(inside)]

    def make(work: Path) -> Path:
        with engine.reported(block.name, "does not compile"):
            compile_model = _library().models.utils.compile_model
            return Path(compile_model(str(package), f"{work}/made.mlmodelc"))

    contents = "\n".join((platform.mac_ver()[0], *sorted(hashes)))
    return build_once("coreml", contents, make, ".mlmodelc")


def placement(bundle: Bundle) -> dict[str, dict[str, int]]:
    """For each `block.function`, the number of operations that Core ML would run on each device.

    Functions without a compute plan are left out.
    """
    placements = {}
    for block in bundle.plan.blocks:
        path = str(compiled(bundle, block))
        plan = _library().models.compute_plan.MLComputePlan.load_from_path(path, _units(block))
        for name, function in plan.model_structure.program.functions.items():
            usages = map(
                plan.get_compute_device_usage_for_mlprogram_operation, function.block.operations
            )
            devices = [type(u.preferred_compute_device).__name__ for u in usages if u is not None]
            if devices:
                counts = Counter(DEVICES[device] for device in devices)
                placements[f"{block.name}.{name}"] = dict(sorted(counts.items()))
    return placements


def _units(block: Block) -> Any:
    return _library().ComputeUnit[UNITS.get(block.stage, "ALL")]


@cache
def _library() -> Any:
    """coremltools.

    Raises:
        RuntimeLoadError: If it is not installed.
    """
    with silent():
        return require("engine 'coreml'", "coremltools", "coremltools", "coreml")
