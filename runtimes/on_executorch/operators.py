"""Operators of ExecuTorch programs by the backend and by portable kernels; counted, not timed."""

from __future__ import annotations

from collections.abc import Mapping

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.kernels import kernels
from edgevlm.bundle.measures import OperatorReport
from edgevlm.runtimes.inspection import Inspection, Table


def count_operators(bundle: Bundle, calls: Mapping[tuple[str, str], int]) -> OperatorReport:
    """Count operators of the functions in `calls`, from the partitioner's records in the bundle."""
    by_function = kernels(bundle)
    backend = dict(bundle.plan.requires.versions).get("backend", "xnnpack")
    counted = [by_function[f"{block}.{function}"] for block, function in calls]
    left = sum(item.count for kernel in counted for item in kernel.left)
    devices = {backend: sum(kernel.delegated for kernel in counted), "portable kernels": left}
    reason = "this build of ExecuTorch has no event tracer (EXECUTORCH_ENABLE_EVENT_TRACER)"
    return OperatorReport(None, devices, left, {"operators": reason})


def kernel_tables(bundle: Bundle) -> Inspection:
    """Operators of each function by the backend or not, and the reason for those that are not."""
    by_function = kernels(bundle)
    rows = tuple(
        (name, str(k.delegated), str(k.calls), ", ".join(f"{x.count} {x.operator}" for x in k.left))
        for name, k in by_function.items()
    )
    heads = ("function", "by the backend", "calls", "by ExecuTorch's portable kernels")
    tables = [Table(heads, rows)]
    reasons = {left.operator: left.reason for k in by_function.values() for left in k.left}
    if reasons:
        tables.append(Table(("operator", "why not by the backend"), tuple(reasons.items())))
    return Inspection({"kernels": by_function}, tuple(tables))
