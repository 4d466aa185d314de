"""Noise by a seed, the same that PyTorch draws on a CPU, so that a seed is the same video there.

`torch.randn` with a generator on the CPU: the 32-bit Mersenne twister; 24 bits of each number are a
uniform one; of 16 uniform numbers the first 8 are radii and the last 8 angles of Box and Muller's
transform (ATen/native/cpu/DistributionTemplates.h, `normal_fill`). Where the count is no multiple
of 16, the last 16 are drawn again. PyTorch's vectorized logarithm and cosine may differ in the last
bit of float32.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

GROUP = 16


def noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Standard normal numbers f32 of a shape of at least 16 elements.

    Args:
        shape: Their shape.
        seed: From 0 on; 32 bits of it count, as in PyTorch.
    """
    count = math.prod(shape)
    twister = np.random.RandomState(seed & 0xFFFFFFFF)
    drawn = _uniform(twister, count)
    whole = count - count % GROUP
    numbers = np.empty(count, np.float32)
    numbers[:whole] = _normal(drawn[:whole])
    if whole < count:
        numbers[-GROUP:] = _normal(_uniform(twister, GROUP))
    return numbers.reshape(shape)


def _uniform(twister: np.random.RandomState, count: int) -> NDArray[np.float32]:
    bits = twister.randint(0, 2**32, count, dtype=np.uint32)
    return (bits & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)


def _normal(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Box and Muller's transform of groups of 16."""
    groups = uniform.reshape(-1, 2, GROUP // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - groups[:, 0]))
    angle = np.float32(2 * math.pi) * groups[:, 1]
    pair = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return pair.reshape(-1).astype(np.float32)
