"""Host arrays that are bound to the functions of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle.functions import DTYPES, Function
from edgevlm.errors import BundleError, RuntimeLoadError

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


def finite(stage: str, result: Array) -> Array:
    """The result of a stage, every number of which is finite.

    Raises:
        BundleError: If a number of it is infinite or none.
    """
    if not np.isfinite(result).all():
        raise BundleError(
            f"stage '{stage}' gives numbers that are not finite: a weight or a constant of the"
            " bundle is damaged, or float16 overflows; see edgevlm verify"
        )
    return result
