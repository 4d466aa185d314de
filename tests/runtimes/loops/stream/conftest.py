"""A tiny bundle that takes streams, and frames for it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def streaming(loop_of):
    """Three frames of 64 tokens, all of which a stream keeps; a context of 576."""
    return loop_of(frames=3, stream=64, context=512)


@pytest.fixture(scope="session")
def pictures():
    """`pictures(count)`: as many pictures, none like another."""

    def make(count, seed=0):
        random = np.random.default_rng(seed)
        for _ in range(count):
            yield Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64))

    return make
