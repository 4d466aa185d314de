"""Core ML packages, executed operation by operation in numpy, on any system.

It reads the packages of `export --target coreml` (`ml_program`) and computes each operation as
Apple documents it (`ml_operators`), rounded to float16 where the program declares float16. That
tests the saved program and its weights, not the kernels of the Neural Engine or the GPU, nor their
speed.

Limits: only operations that current exports use; another one is an error when a block is loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle.files import Bundle
from edgevlm.errors import RuntimeLoadError
from edgevlm.libraries import needs
from edgevlm.runtimes import engine
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.inspection import Inspection
from edgevlm.runtimes.on_coreml_reference import ml_program as program
from edgevlm.runtimes.on_coreml_reference.ml_operators import LISTS, OPERATORS, STATES
from edgevlm.runtimes.on_coreml_reference.ml_shapes import CASTS

MISSING = needs("engine 'coreml-reference'", "coremltools", "coreml")
# These compute no new values, and may move mask values that are large on purpose.
MOVES = ("cast", "concat", "expand_dims", "gather", "reshape", "select", "split", "tile",
         "transpose")  # fmt: skip


@dataclass(frozen=True)
class Step:
    """An operation with its constants; `free` are values that no later operation reads."""

    operation: program.Operation
    inputs: Mapping[str, tuple[Any, ...]]
    free: tuple[str, ...]


class Engine(engine.Engine):
    """Loads blocks of one bundle, and runs their functions over arrays that the host owns.

    A state of a program is the array bound as a cache's input. `largest` has, for each function and
    each kind of operation, the largest value (or infinity) that was rounded to float16: one near
    65,504 may overflow with another image.
    """

    name, targets, rank = "coreml-reference", ("coreml",), 0
    inspects_pictures = True

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle)
        self._functions: dict[tuple[str, str], program.MilFunction] = {}
        self._steps: dict[tuple[str, str], list[Step]] = {}
        self._constants: dict[tuple[str, str], dict[str, Array]] = {}

    @classmethod
    def summary(cls) -> str:
        """Its purpose."""
        return "Core ML programs in numpy, operation by operation; slow, for checking"

    @classmethod
    def unavailable(cls) -> str | None:
        """The missing library, which is slow to import, so it is imported at the first load."""
        return None if importlib.util.find_spec("coremltools") else MISSING

    @classmethod
    def inspect(cls, bundle: Bundle, pictures: Sequence[Path], prompt: str) -> Inspection:
        """Operations of each program, and the largest float16 values for the given images."""
        from edgevlm.runtimes.on_coreml_reference.ml_report import inspection

        if (reason := cls.unavailable()) is not None:
            raise RuntimeLoadError(reason)
        return inspection(bundle, pictures, prompt)

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function's inputs and outputs, by name; a state may be float16."""
        self.arrays[block, function] = arrays

    def load(self, block: str, function: str | None = None, mode: str = engine.PRIVATE) -> None:
        """Read all programs of a block; no effect if they are loaded.

        Raises:
            BundleError: If a file was changed, or is not a program.
            RuntimeLoadError: If a program has an unsupported operation, or does not match the
                manifest.
        """
        if any(name == block for name, _ in self._functions):
            return
        planned = self.bundle.plan.block(block)
        paths = self.bundle.files_of(planned)
        packages = {path: program.read_package(path) for path in set(paths.values())}
        for spec in planned.functions:
            parsed = packages[paths[spec.name]].get(spec.name)
            if parsed is None:
                raise RuntimeLoadError(
                    f"{block}: the package lacks the function '{spec.name}' of the manifest"
                )
            _check_signature(parsed, spec, block)
            self._prepare((block, spec.name), parsed)

    def run(self, block: str, function: str) -> None:
        """Run a loaded function over its bound arrays.

        Raises:
            RuntimeLoadError: If an operation does not accept its inputs.
        """
        key = (block, function)
        parsed, arrays = self._functions[key], self.arrays[key]
        values: dict[str, Any] = dict(self._constants[key])
        values |= {v.name: _as(np.array(arrays[v.name]), v.dtype) for v in parsed.inputs}
        cached = self.bundle.plan.block(block).function(function).caches
        states = {cache.name: arrays[cache.input] for cache in cached if cache.name}
        for step in self._steps[key]:
            inputs = {
                name: _resolve(names, values, name in LISTS)
                for name, names in step.inputs.items()
                if step.operation.kind not in STATES
            }
            if step.operation.kind == "read_state":
                results: Any = states[step.inputs["input"][0]].copy()
            elif step.operation.kind == "write_state":
                state = states[step.inputs["input"][0]]
                state[:] = _resolve(step.inputs["data"], values, False)
                continue
            else:
                where = f"{block}.{function}: {step.operation.kind}"
                with engine.reported(where, "does not run"):
                    results = OPERATORS[step.operation.kind](**inputs)
            _keep(values, step, results)
            self._record_largest(key, step, values)
        for name in parsed.outputs:
            arrays[name][:] = values[name]

    def unload(self, block: str, function: str | None = None) -> None:
        """Free the block's memory."""
        for key in [key for key in self._functions if key[0] == block]:
            del self._functions[key], self._steps[key], self._constants[key]

    def _record_largest(self, key: tuple[str, str], step: Step, values: Mapping[str, Any]) -> None:
        if step.operation.kind in MOVES:
            return
        for value in step.operation.outputs:
            if value.dtype == "fp16" and value.name in values:
                array = values[value.name]
                top = max(float(array.max()), -float(array.min()))
                kinds = self.largest.setdefault(key, {})
                kinds[step.operation.kind] = max(top, kinds.get(step.operation.kind, 0.0))

    def _prepare(self, key: tuple[str, str], parsed: program.MilFunction) -> None:
        """Compute constants once, and find the last reader of each value."""
        constants: dict[str, Any] = {}
        steps: list[Step] = []
        for operation in parsed.operations:
            known = operation.kind in OPERATORS or operation.kind in STATES
            if not known:
                raise RuntimeLoadError(
                    f"{key[0]}.{key[1]}: operation '{operation.kind}' is not supported by engine"
                    " 'coreml-reference'; use 'coreml' on a Mac"
                )
            step = Step(operation, operation.inputs, ())
            if operation.kind == "const":  # not copied: functions share the weights
                constants[operation.outputs[0].name] = operation.inputs["val"][0]
            elif operation.kind.startswith("constexpr_"):
                inputs = {n: _resolve(p, constants, n in LISTS) for n, p in step.inputs.items()}
                inputs.pop("name", None)
                _keep(constants, step, OPERATORS[operation.kind](**inputs))
            else:
                steps.append(step)
        last = {name: i for i, step in enumerate(steps) for name in program.names(step.inputs)}
        needed = {*constants, *parsed.outputs}
        self._functions[key], self._constants[key] = parsed, constants
        self._steps[key] = [
            Step(
                step.operation,
                step.inputs,
                tuple(n for n, at in last.items() if at == index and n not in needed),
            )
            for index, step in enumerate(steps)
        ]


def _resolve(parts: tuple[Any, ...], values: Mapping[str, Any], several: bool) -> Any:
    """Values of names; a tuple for inputs that are lists."""
    resolved = [
        values[part] if isinstance(part, str) and part in values else part for part in parts
    ]
    return tuple(resolved) if several else resolved[0]


def _keep(values: dict[str, Any], step: Step, results: Any) -> None:
    """Store an operation's results as their declared types; drop values without further readers."""
    outputs = step.operation.outputs
    for value, result in zip(outputs, results if len(outputs) > 1 else (results,), strict=False):
        if isinstance(result, tuple):
            (result,) = result
        values[value.name] = result if isinstance(result, str) else _as(result, value.dtype)
    for name in step.free:
        values.pop(name, None)


def _as(array: Any, dtype: str) -> Array:
    """An array of a program's type; float16 is float32 with rounded values."""
    if dtype == "fp16":
        with np.errstate(over="ignore"):  # too large is infinite, as on the device
            return np.asarray(array).astype(np.float16).astype(np.float32)
    return np.asarray(array).astype(CASTS.get(dtype, np.int32), copy=False)


def _check_signature(parsed: program.MilFunction, function: Any, block: str) -> None:
    """Check that a program's inputs, states and outputs are those of the manifest."""
    types = {"f32": "fp32", "i32": "int32"}
    inputs = {t.name: (types[t.dtype], t.shape) for t in function.passed_in}
    states = {cache.name: t.shape for cache, t in function.cached() if cache.name}
    outputs = {tensor.name for tensor in function.passed_out}
    good = (
        {v.name: (v.dtype, v.shape) for v in parsed.inputs} == inputs
        and all(states.get(v.name) == v.shape for v in parsed.states)
        and set(parsed.outputs) == outputs
    )
    if not good:
        raise RuntimeLoadError(
            f"{block}.{function.name}: inputs and outputs of the package differ from the manifest;"
            " export again"
        )
