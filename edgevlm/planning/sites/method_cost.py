"""What a method of site `tokens` costs itself, beside what it saves."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

REPEATS, WARMUPS = 5, 2


@dataclass(frozen=True)
class MethodCost:
    """Cost of choosing the tokens of one image or clip.

    Attributes:
        nodes: Operators of its graph.
        bytes: Most memory of its tensors at one time, inputs left out; views count as copies.
        ms: Median time in PyTorch, on this machine, on random features.
    """

    nodes: int
    bytes: int
    ms: float


def method_cost(planned: Any) -> MethodCost | None:
    """Trace the plan's method and run it; None where it keeps all tokens, or there is no such site.

    Args:
        planned: What `make_plan` of any kind gave.
    """
    counts = [site for site in planned.plan.sites if site.site == "tokens"]
    if all(site.tokens_in == site.tokens_out for site in counts):
        return None
    shape, reduce = planned.description.shape, planned.plan.stage("reduce")[0]
    inputs = reduce.functions[0].inputs[1:]
    further = {t.name: t.shape[2:] for t in inputs if t.name in planned.method.signals}
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(1, shape.tokens, shape.channels, generator=generator)
    signals = {
        name: torch.rand(1, shape.tokens, *wide, generator=generator)
        for name, wide in further.items()
    }

    class Alone(nn.Module):
        def forward(self, features: Tensor, signals: dict[str, Tensor]) -> tuple[Tensor, ...]:
            outputs: tuple[Tensor, ...] = planned.method(features, shape=shape, **signals)
            return outputs

    with torch.no_grad():
        program = torch.export.export(Alone(), (features, signals), strict=False)
        run = program.module()
        times = []
        for _ in range(WARMUPS + REPEATS):
            started = time.perf_counter()
            run(features, signals)
            times.append((time.perf_counter() - started) * 1e3)
    nodes = sum(node.op == "call_function" for node in program.graph.nodes)
    return MethodCost(nodes, most_bytes(program), statistics.median(times[WARMUPS:]))


def most_bytes(program: ExportedProgram) -> int:
    """Most bytes of a graph's own tensors that are alive at one time."""
    nodes = list(program.graph.nodes)
    last = {used: index for index, node in enumerate(nodes) for used in node.all_input_nodes}
    alive, most = dict[object, int](), 0
    for index, node in enumerate(nodes):
        if node.op == "call_function":
            value = node.meta["val"]
            values = value if isinstance(value, tuple | list) else (value,)
            alive[node] = sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
        most = max(most, sum(alive.values()))
        alive = {node: size for node, size in alive.items() if last.get(node, index) > index}
    return most
