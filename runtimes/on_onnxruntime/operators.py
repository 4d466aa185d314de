"""The time of each operator by ONNX Runtime's own profiler, in separate runs.

Each function is opened once more, alone, over the same arrays, run a few times with the profiler
on, and closed. The names of weights in the graph are the names of the model's modules; an operator
without weights counts for the module of its inputs.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevlm.bundle.measures import Operator, OperatorReport, stat_of
from edgevlm.runtimes.on_onnxruntime.engine import Engine

# The only execution provider that the engine requests.
PROVIDER = "cpu"
RUNS, WARM_UPS = 5, 1
SUFFIX = "_kernel_time"
_OUTSIDE = "session.optimized_model_external_initializers_file_name"


def time_operators(engine: Engine, calls: Mapping[tuple[str, str], int]) -> OperatorReport:
    """Time every operator of every function.

    Args:
        engine: The engine; its bound arrays hold the last answer's values.
        calls: How often one answer runs each function, by block and function.
    """
    operators: list[Operator] = []
    with tempfile.TemporaryDirectory() as folder:
        profiled = _ProfiledEngine(engine, Path(folder))
        for (block, function), count in calls.items():
            times_of = profiled.times(block, function)
            modules = modules_of(profiled.graph) if importlib.util.find_spec("onnx") else None
            for name, kind, provider, times in times_of:
                module = None if modules is None else modules.get(name, "")
                run_ms = stat_of([t / 1e3 for t in times])
                provider_name = provider.removesuffix("ExecutionProvider").lower()
                operators.append(
                    Operator(block, function, name, kind, module, provider_name, count, run_ms)
                )
    devices = dict(Counter(operator.device for operator in operators))
    away = sum(count for device, count in devices.items() if device != PROVIDER)
    named = all(operator.module is not None for operator in operators)
    reason = (
        {} if named else {"operators.module": "reading the graphs needs 'onnx'; pip install onnx"}
    )
    return OperatorReport(tuple(operators), devices, away, reason)


class _ProfiledEngine(Engine):
    """An engine over the same arrays whose sessions write profiles and graphs into a folder."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        super().__init__(engine.bundle, engine.threads)
        self.arrays, self._folder, self.graph = engine.arrays, folder, folder / "run.onnx"

    def options(self) -> Any:
        """Settings of every session, with the profiler on."""
        options = super().options()
        options.enable_profiling = True
        options.profile_file_prefix = str(self._folder / "profile")
        options.optimized_model_filepath = str(self.graph)
        options.add_session_config_entry(_OUTSIDE, "run.matrices")
        return options

    def times(self, block: str, function: str) -> list[tuple[str, str, str, list[int]]]:
        """Name, kind, provider and microseconds of each operator, in the order of the runs."""
        self._shared.clear()  # a session writes one profile
        self.load(block, function, self.resident_mode)
        for _ in range(WARM_UPS + RUNS):
            self.run(block, function)
        file = Path(self._sessions[block, function].end_profiling())
        self.unload(block, function)
        events = json.loads(file.read_text("utf-8"))
        file.unlink()
        by_node: dict[tuple[str, str], tuple[str, str, str, list[int]]] = {}
        for event in events:
            name, details = str(event["name"]), event.get("args", {})
            if event.get("cat") != "Node" or not name.endswith(SUFFIX):
                continue
            name = name.removesuffix(SUFFIX)
            fresh = (name, str(details["op_name"]), str(details["provider"]), list[int]())
            # Names may repeat in a graph, node numbers do not.
            by_node.setdefault((details["node_index"], name), fresh)[3].append(int(event["dur"]))
        return [(*entry[:3], entry[3][WARM_UPS:]) for entry in by_node.values()]


def modules_of(path: Path) -> dict[str, str]:
    """Module of each node of a graph, by the node's name; empty where no weight shows it."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {i.name for i in (*graph.initializer, *graph.input) if "." in i.name}
    module_of: dict[str, str] = {}  # by tensor
    modules: dict[str, str] = {}
    for node in graph.node:
        own = [name for name in node.input if name in weights]
        if own:
            module = _common([_parts(name) for name in own])
            inside = module[:-1]
        else:
            sources = [module_of[name].split(".") for name in node.input if module_of.get(name)]
            # A sum over two layers counts for the later one: only sources of that layer are used.
            sources = [s for s in sources if s[:2] == sources[-1][:2]]
            module = inside = _common(sources) if sources else []
        modules[node.name] = ".".join(module)
        module_of |= dict.fromkeys(node.output, ".".join(inside))
    return modules


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
    """The longest common prefix."""
    prefix: list[str] = []
    for parts in zip(*paths, strict=False):
        if len({*parts}) > 1:
            break
        prefix.append(parts[0])
    return prefix


def _parts(weight: str) -> list[str]:
    """`layers.0.mlp.up_proj.weight.transposed` -> its module, in parts."""
    parts = weight.split(".")
    ends = [i for i, part in enumerate(parts) if part.startswith(("weight", "bias"))]
    return parts[: ends[-1]] if ends else parts[:-1]
