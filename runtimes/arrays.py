"""Host arrays that are bound to the functions of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edgevlm.bundle.functions import DTYPES, Function
from edgevlm.errors import RuntimeLoadError

Array = NDArray[Any]


def check_arrays(block: str, function: Function, arrays: Mapping[str, Array]) -> None:
    """Check that arrays can be bound to a function's inputs and outputs.

    Raises:
        RuntimeLoadError: If an array is missing, not contiguous, or has another shape or dtype.
    """
    for spec in (*function.inputs, *function.outputs):
        array = arrays.get(spec.name)
        if (
            array is None
            or array.shape != spec.shape
            or array.dtype != DTYPES[spec.dtype]
            or not array.flags.c_contiguous
        ):
            got = "none" if array is None else f"{array.dtype} {list(array.shape)}"
            raise RuntimeLoadError(
                f"{block}.{function.name}: '{spec.name}' must be a contiguous array of"
                f" {spec.dtype} {list(spec.shape)}, got {got}"
            )
