"""MustDrop's stages as a plan, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevlm.compress.decoder.mustdrop import Method, word_attention
from edgevlm.errors import PlanError
from edgevlm.graphs.selection import largest_indices


def test_attention_of_all_words_or_of_one() -> None:
    """A token stays for little attention of all words or much of one; other rows do not count."""
    weights = torch.tensor(
        [[0.9, 0.0, 0.0, 0.0], [0.0, 0.1, 0.02, 0.0], [0.0, 0.1, 0.02, 0.3], [0.9, 0.0, 0.0, 0.0]]
    )
    scores = word_attention(weights, torch.tensor([False, True, True, False]))
    np.testing.assert_allclose(scores, [0.0, 0.2 / 0.54, 0.04 / 0.54, 0.3 / 0.54])
    assert largest_indices(scores, 2).tolist() == [1, 3]


def test_plans() -> None:
    """Visual tokens that each layer sees."""
    halved = (*[64] * 2, *[32] * 4, *[16] * 4, *[8] * 4, *[4] * 18)
    assert Method().plan(64, 32) == halved
    assert Method(tokens="9+3", layers="1+4").plan(64, 5) == (64, 9, 9, 9, 3)


def test_impossible_plans() -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=r"^mustdrop: got tokens for 2 stages and 1 "):
        Method(tokens="9+3", layers=1).plan(64, 4)
