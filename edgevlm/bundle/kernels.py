"""Operators of an ExecuTorch program by the backend, and by portable kernels with the reason.

The exporter writes them beside each program, `BLOCK.kernels.json`, because only the partitioner
knows the reasons. Each call of the backend between other operators costs a copy or two of its
inputs and outputs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgevlm.bundle.documents import DocumentError, read
from edgevlm.bundle.files import Bundle
from edgevlm.errors import BundleError


@dataclass(frozen=True)
class Left:
    """An operator that ExecuTorch's portable kernels compute: its count in a function, and why."""

    operator: str
    count: int
    reason: str


@dataclass(frozen=True)
class Kernels:
    """One function: operators by the backend, calls of it, and operators by portable kernels."""

    delegated: int
    calls: int
    left: tuple[Left, ...]


def kernels(bundle: Bundle) -> dict[str, Kernels]:
    """For each `block.function` of a bundle of target `executorch`.

    Raises:
        BundleError: If a file is missing, was changed, or is not valid.
    """
    by_function: dict[str, Kernels] = {}
    for block in bundle.plan.blocks:
        name = PurePosixPath(block.functions[0].file).with_suffix(".kernels.json").as_posix()
        try:
            document = json.loads(bundle.file(name).read_text("utf-8"))
            functions = read(dict[str, Kernels], document, name)
        except (ValueError, DocumentError) as cause:
            raise BundleError(f"'{name}' is not valid: {cause}") from cause
        by_function |= {f"{block.name}.{function}": functions[function] for function in functions}
    return by_function
