"""Choices and merges of tokens that hang on rounding, told from wrong ones.

Where `reduce` keeps other tokens than PyTorch, and PyTorch itself would with inputs that differ by
rounding alone, the choice is not wrong. Where tokens merge inside a rounded encoder, what each
patch has is compared, and what PyTorch itself reaches in float16 is accepted: which tokens merge
hangs on rounding there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edgevlm.parity.compare import Array, difference

NOISE, TRIALS = 2.0**-22, 8  # of the test whether a choice of tokens hangs on rounding
HALF_NOISE = 2.0**-11  # of merging in float16


def by_patch(
    actual: Mapping[str, Array], expected: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Both sides of a block in which tokens merge, by patch: rounding merges other tokens.

    Args:
        actual: The engine's outputs: `hidden`, `size` and `origin` where tokens merge, signals.
        expected: PyTorch's.

    Returns:
        Both sides without `origin`: hidden [1, N, C] is that of each patch, and size [1, n, 1] that
        of the n patches which both sides merged with the same ones. As they are where there is no
        `origin`.
    """
    sides = dict(actual), dict(expected)
    if "origin" not in expected:
        return sides
    origins = [side.pop("origin")[0] for side in sides]
    together = [origin[:, None] == origin for origin in origins]
    alike = (together[0] == together[1]).all(1)
    alike = alike if alike.any() else np.ones_like(alike)
    for side, origin in zip(sides, origins, strict=True):
        side["hidden"] = side["hidden"][:, origin]
        if "size" in side:
            side["size"] = side["size"][:, origin][:, alike]
    return sides


def float16_psnr_db(
    module: nn.Module, inputs: Sequence[Array], expected: Mapping[str, Array]
) -> float | None:
    """How far float16 alone moves a block in which tokens merge: the worst of several trials.

    Args:
        module: The block in PyTorch.
        inputs: Its inputs.
        expected: What it gives in float32, by name; the first output is compared.
    """
    random, each = np.random.default_rng(0), []
    for _ in range(TRIALS):
        with torch.autocast("cpu", dtype=torch.float16):
            outputs = module(*_near(inputs, random, HALF_NOISE))
        rounded = outputs if isinstance(outputs, tuple) else (outputs,)
        wide = (t.float() if t.is_floating_point() else t for t in rounded)
        named = zip(expected, (tensor.numpy() for tensor in wide), strict=True)
        sides = by_patch(dict(named), expected)
        each.append(difference(*(next(iter(side.values())) for side in sides))[1])
    return min((psnr_db for psnr_db in each if psnr_db is not None), default=None)


def hangs_on_rounding(
    module: nn.Module, inputs: Sequence[Array], actual: Array, expected: Array
) -> bool:
    """Whether PyTorch itself keeps other tokens when its inputs change by 2^-22 of their size.

    Args:
        module: `reduce` in PyTorch; its second output are the kept positions.
        inputs: Its inputs.
        actual: The positions that the engine keeps [1, K]. A choice that is less than half as near
            to PyTorch's as those of changed inputs is wrong.
        expected: The positions that PyTorch keeps [1, K].
    """
    random, least = np.random.default_rng(0), 1.0
    for _ in range(TRIALS):
        again = module(*_near(inputs, random, NOISE))[1].numpy()
        least = min(least, float(np.isin(again, expected).mean()))
    return least < 1 and float(np.isin(actual, expected).mean()) >= least / 2


def _near(inputs: Sequence[Array], random: np.random.Generator, noise: float) -> list[Any]:
    """The same inputs, each number changed by at most `noise` of its size; indices as they are."""
    return [
        torch.from_numpy(
            array
            if array.dtype.kind == "i"
            else array * (1 + random.uniform(-1, 1, array.shape) * noise).astype(np.float32)
        )
        for array in inputs
    ]
