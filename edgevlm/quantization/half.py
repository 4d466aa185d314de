"""Whether float16 arithmetic holds what a model computes: asked before anything is traced.

A model trained in bfloat16 may compute numbers beyond 65,504, where float16 is infinite. It answers
one question about a photograph of ours in float32, and the outputs of its modules are recorded.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from edgevlm.errors import PlanError
from edgevlm.exporters.contract import find_target
from edgevlm.models.checkpoint import MOST_HALF, Checkpoint
from edgevlm.planning.plan import Planned
from edgevlm.quantization.calibrate import Presenter, scenes
from edgevlm.recipe import Recipe


def check_half(planned: Planned, model: Any, progress: Callable[[str], None]) -> None:
    """Refuse a scheme in float16 for a model that computes larger numbers.

    Args:
        planned: The plan; stages whose scheme computes in float32 are not asked.
        model: The checkpoint's model in float32.
        progress: Called with the step, where there is one.

    Raises:
        PlanError: Naming the module, its largest output and the scheme.
    """
    schemes = _schemes(planned, model)
    if not schemes:
        return
    progress("check numbers for float16")
    tops = _tops(planned.plan.recipe, planned.checkpoint, model, set(schemes))
    for name, top in tops.items():
        if not top <= MOST_HALF:  # nan too
            shown = f"{top:,.0f}" if math.isfinite(top) else str(top)
            raise PlanError(
                f"float16 overflows: the output of '{name}' is as large as {shown} on a photograph,"
                f" and float16, in which scheme '{schemes[name]}' computes, ends at"
                f" {MOST_HALF:,.0f}; choose --quantize none for its stage"
            )


def _schemes(planned: Planned, model: Any) -> dict[str, str]:
    """Names of the modules that will compute in float16, each with its scheme."""
    recipe = planned.plan.recipe
    halves = find_target(recipe.target).half_arithmetic
    parts = planned.parts(model)
    scheme_of: dict[int, str] = {}
    for block in planned.plan.blocks:
        scheme = recipe.scheme(block.stage)
        if scheme in halves:
            modules = planned.build(block, parts).modules()
            scheme_of |= dict.fromkeys(map(id, modules), scheme)
    return {name: scheme_of[id(m)] for name, m in model.named_modules() if id(m) in scheme_of}


def _tops(recipe: Recipe, checkpoint: Checkpoint, model: Any, names: set[str]) -> dict[str, float]:
    """The largest output of each of these modules, in the order in which they first run."""
    tops: dict[str, float] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, outputs: Any) -> None:
            output = outputs[0] if isinstance(outputs, tuple) else outputs
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                top = float(output.abs().max())
                tops[name] = top if math.isnan(top) else max(top, tops.get(name, 0.0))

        return record

    kind = importlib.import_module(f"edgevlm.quantization.kinds.{checkpoint.family.KIND}")
    presenter: Presenter = kind.presenter(recipe, checkpoint, model)
    hooks: list[Any] = [
        module.register_forward_hook(recorder(name))
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        for example in scenes("1", recipe.frames):
            presenter.show(example)
    finally:
        for hook in hooks:
            hook.remove()
    return tops
