"""What the backend computes of an ExecuTorch program and what it leaves; counted, not timed."""

from __future__ import annotations

from collections.abc import Mapping

from edgevlm.bundle.kernels import kernels
from edgevlm.bundle.measures import OperatorReport
from edgevlm.runtimes.on_executorch.engine import Engine


def operators(engine: Engine, calls: Mapping[tuple[str, str], int]) -> OperatorReport:
    """Count operators of the functions in `calls`, from what the partitioner wrote down."""
    told = kernels(engine.bundle)
    backend = dict(engine.bundle.plan.requires.versions).get("backend", "xnnpack")
    found = [told[f"{block}.{function}"] for block, function in calls]
    left = sum(item.count for kernel in found for item in kernel.left)
    placement = {backend: sum(kernel.delegated for kernel in found), "portable kernels": left}
    reason = "this build of ExecuTorch has no event tracer (EXECUTORCH_ENABLE_EVENT_TRACER)"
    return OperatorReport(None, placement, left, {"operators": reason})
