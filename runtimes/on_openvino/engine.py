"""OpenVINO's CPU plugin.

    graph + weights, mapped -> compiled -> one request per function, over the host's arrays

A function reads the caches in place. Its outputs `NAME@POSITION` are the new rows of a cache, which
are written into the host's array after each run; other outputs of a cache are copied there, since
an array cannot be read and written by one graph.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.functions import DTYPES, Block, Function
from edgevlm.errors import RuntimeLoadError
from edgevlm.libraries import needs, processors
from edgevlm.runtimes import engine
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.on_openvino.graphs import checked_model
from edgevlm.runtimes.on_openvino.library import import_openvino

DEVICE = "CPU"
GROUP = 32  # activations that share a scale under `w8a8`
ROWS = "@"  # between the name of a cache's output and the input that says where its rows belong
VIEWS = ("Reshape", "Squeeze", "Unsqueeze")  # of the same numbers in the same order
MISSING = needs("engine 'openvino'", "openvino", "openvino")


@dataclass(frozen=True)
class _Compiled:
    """A function.

    Attributes:
        model: What the plugin made of it; None if it computes nothing.
        results: Names of its outputs, in order.
        passed: Outputs that are inputs, with the names of these.
    """

    model: Any
    results: tuple[str, ...]
    passed: Mapping[str, str]


class Engine(engine.Engine):
    """Loads blocks of one bundle, and runs their functions over arrays that the host owns."""

    name, targets, budgets = "openvino", ("openvino",), True

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle, threads)
        self.threads = self.threads or processors()
        self._core = import_openvino().Core()
        self._compiled: dict[engine.Key, _Compiled] = {}
        self._requests: dict[engine.Key, tuple[Any, list[Callable[[], None]]]] = {}

    @classmethod
    def summary(cls) -> str:
        """The release, and where it runs."""
        return f"OpenVINO {import_openvino().__version__.partition('-')[0]}, CPU"

    @classmethod
    def unavailable(cls) -> str | None:
        """The missing library."""
        return None if importlib.util.find_spec("openvino") is not None else MISSING

    def bind(self, block: str, function: str, arrays: Mapping[str, Array]) -> None:
        """Fix the arrays of a function's inputs and outputs, by name; they must stay alive.

        Raises:
            RuntimeLoadError: If an array is missing or has another shape or dtype.
        """
        super().bind(block, function, arrays)
        self._requests.pop((block, function), None)

    def load(self, block: str, function: str | None = None, mode: str = engine.PRIVATE) -> None:
        """Compile a block, or one function of it; no effect if it is compiled.

        Raises:
            BundleError: If a file was changed.
            RuntimeLoadError: If OpenVINO cannot load an artifact.
        """
        planned = self.bundle.plan.block(block)
        names = [function] if function else [f.name for f in planned.functions]
        names = [name for name in names if (block, name) not in self._compiled]
        if not names:
            return
        files = self.bundle.files_of(planned)
        weights = _weights(self.bundle, planned)
        for name in names:
            model = checked_model(self._core, files[name], weights)
            _check_signature(model, planned.function(name), block)
            passed = _take_out_passed(model)
            results = tuple(result.get_friendly_name() for result in model.results)
            settings = self._settings(planned)
            made = self._core.compile_model(model, DEVICE, settings) if results else None
            self._compiled[block, name] = _Compiled(made, results, passed)

    def _settings(self, block: Block) -> dict[str, Any]:
        """Settings of a compiled model."""
        scheme = self.bundle.plan.recipe.scheme(block.stage)
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": "f32",
            # Threads pinned to cores would keep them from the load of the next block.
            "ENABLE_CPU_PINNING": False,
            # Activations are rounded, by groups of so many, where the scheme says so.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if scheme == "w8a8" else 0,
        }

    def run(self, block: str, function: str) -> None:
        """Run a loaded function over its bound arrays.

        Raises:
            RuntimeLoadError: If the run fails.
        """
        key = (block, function)
        if key not in self._requests:
            self._requests[key] = self._request(key)
        request, copies = self._requests[key]
        if request is not None:
            request.infer()
        for copy in copies:
            copy()

    def unload(self, block: str, function: str | None = None) -> None:
        """Free the memory of a block, or of one function of it."""
        for key in [key for key in list(self._compiled) if key[0] == block]:
            if function in (None, key[1]):
                self._requests.pop(key, None)
                del self._compiled[key]

    def _request(self, key: engine.Key) -> tuple[Any, list[Callable[[], None]]]:
        """A request over the bound arrays, and what it is followed by."""
        tensor, compiled = import_openvino().Tensor, self._compiled[key]
        planned = self.bundle.plan.block(key[0]).function(key[1])
        arrays = self.arrays[key]
        copies = [_copy(arrays[out], arrays[name]) for out, name in compiled.passed.items()]
        if compiled.model is None:
            return None, copies
        request = compiled.model.create_infer_request()
        for port in compiled.model.inputs:
            array = arrays[port.get_node().get_friendly_name()]
            request.set_tensor(port, tensor(array, shared_memory=True))
        cached = {cache.output for cache in planned.caches}
        for index, said in enumerate(compiled.results):
            name, _, place = said.partition(ROWS)
            array = arrays[name]
            if name in cached:
                own = np.zeros(tuple(compiled.model.outputs[index].shape), array.dtype)
                copies.append(_copy(array, own, arrays[place] if place else None))
                array = own
            request.set_output_tensor(index, tensor(array, shared_memory=True))
        return request, copies


def _take_out_passed(model: Any) -> dict[str, str]:
    """Remove outputs that are inputs; gives the input of each.

    The plugin would read such an input from the array of the output (2026.4).
    """
    passed = {}
    for result in model.get_results():
        node = result.input_value(0).get_node()
        while node.get_type_name() in VIEWS:
            node = node.input_value(0).get_node()
        if node.get_type_name() == "Parameter":
            passed[result.get_friendly_name()] = node.get_friendly_name()
            model.remove_result(result)
    return passed


def _copy(array: Array, own: Array, position: Array | None = None) -> Callable[[], None]:
    """Write an array into a host's: into a cache from the row at `position` on, else all of it."""
    rows = own.shape[2] if position is not None else 0

    def whole() -> None:
        array[...] = own.reshape(array.shape)

    def some() -> None:
        assert position is not None
        start = int(position[0])
        array[:, :, start : start + rows] = own

    return whole if position is None else some


def _weights(bundle: Bundle, block: Block) -> Path | None:
    """The file of a block's weights, if it has any."""
    paths = [bundle.path / entry.path for entry in bundle.weights_of(block)]
    return next((path for path in paths if path.name == f"{block.name}.weights"), None)


def _check_signature(model: Any, function: Function, block: str) -> None:
    """Check that inputs and outputs are those of the manifest, as binding trusts them."""
    types = {np.dtype(DTYPES[name]): name for name in DTYPES}

    def found(node: Any) -> tuple[str, tuple[int, ...]]:
        port = node.output(0)
        return types.get(port.get_element_type().to_dtype(), "?"), tuple(port.get_shape())

    given = {node.get_friendly_name(): found(node) for node in model.get_parameters()}
    wanted = {tensor.name: (tensor.dtype, tensor.shape) for tensor in function.inputs}
    made = dict[str, Any]()
    for result in model.get_results():
        name, _, place = result.get_friendly_name().partition(ROWS)
        made[name] = found(result)
        whole = next((t.shape for t in function.outputs if t.name == name), ())
        if place and wanted.get(place) == ("i32", (1,)) and len(whole) == len(made[name][1]) == 4:
            dtype, shape = made[name]  # new rows stand for the whole cache
            if 1 <= shape[2] <= whole[2]:
                made[name] = dtype, (*shape[:2], whole[2], shape[3])
    expected = {tensor.name: (tensor.dtype, tensor.shape) for tensor in function.outputs}
    for got, want in ((given, wanted), (made, expected)):
        for name in sorted(got.keys() | want.keys()):
            if got.get(name) != want.get(name):
                raise RuntimeLoadError(
                    f"{block}.{function.name}: '{name}' is {got.get(name)} in the artifact,"
                    f" {want.get(name)} in the manifest"
                )
