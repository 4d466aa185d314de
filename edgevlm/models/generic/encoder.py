"""`get_image_features` of any model as one static module: traced without weights, then over them.

The trace has no device and no data of its own, so the module that is made of it runs wherever the
weights are: on the meta device for a plan, and over weights that stay in their files for an export.
"""

from __future__ import annotations

from inspect import Parameter, signature
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgevlm.errors import PlanError
from edgevlm.graphs import trace


class Features(nn.Module):
    """`get_image_features` of a model: pixel_values f32 [1, 3, h_px, w_px] -> [1, N, C]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = getattr(model, "model", model)

    def forward(self, pixel_values: Tensor) -> Tensor:
        found: Any = self.model.get_image_features(pixel_values=pixel_values)
        found = getattr(found, "pooler_output", found)
        views = found if isinstance(found, list | tuple) else [found]
        return torch.cat([view.reshape(-1, view.shape[-1]) for view in views])[None]


def traced(empty: Any, height: int, width: int) -> ExportedProgram:
    """The trace for views of one size.

    Args:
        empty: The model on the meta device.
        height: Of a view, in pixels.
        width: The same.

    Raises:
        PlanError: If the model asks for more than pixels, or does not run on them.
        TraceError: If the graph breaks a rule.
    """
    module = Features(empty)
    asked = signature(module.model.get_image_features).parameters.values()
    beside = [
        p.name
        for p in asked
        if p.default is Parameter.empty
        and p.kind is not Parameter.VAR_KEYWORD
        and p.name != "pixel_values"
    ]
    if beside:
        raise PlanError(f"get_image_features asks for {', '.join(beside)} beside pixel_values")
    pixel_values = torch.zeros(1, 3, height, width, device="meta")
    try:
        with torch.no_grad():
            program = torch.export.export(module, (pixel_values,), strict=False)
    except Exception as cause:  # transformers' own code raises anything
        raise PlanError(
            f"get_image_features does not run on pixel_values [1, 3, {height}, {width}] alone"
        ) from cause
    trace.check(program, "get_image_features")
    return program


def features_shape(program: ExportedProgram) -> tuple[int, int]:
    """Tokens of a view, and the channels of each."""
    (output,) = program.graph.output_node().args[0]
    _, tokens, width = output.meta["val"].shape
    return int(tokens), int(width)


def over(program: ExportedProgram, model: Any) -> fx.GraphModule:
    """The trace over the weights of a model, and no other of its weights."""
    plain: fx.GraphModule = program.module(check_guards=False)
    for node in plain.graph.nodes:  # what the trace makes is made where the weights are
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "device"}
    plain.graph.eliminate_dead_code()
    owners = Features(model), plain
    targets = {node.target for node in plain.graph.nodes if node.op == "get_attr"}
    return fx.GraphModule({name: _owned(name, owners) for name in targets}, plain.graph)


def _owned(name: str, owners: tuple[nn.Module, ...]) -> Any:
    """What the first owner that has it calls so: a weight of the model, or the trace's constant."""
    for owner in owners:
        try:
            return attrgetter(name)(owner)
        except AttributeError:
            continue
    raise PlanError(f"the trace has a constant '{name}' that is nowhere")
