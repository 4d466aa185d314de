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


@pytest.mark.parametrize(
    ("share", "largest", "kept"),
    [(0.001, 0.001, [1, 3]), (0.0012, 0.001, [1, 3]), (0.011, 0.01, [1, 3]), (0.01, 0.02, [0, 1])],
)
def test_thresholds_weigh_the_two(share: float, largest: float, kept: list[int]) -> None:
    """Token 0 has the second largest part of all words' attention, token 3 the largest of one."""
    weights = torch.tensor([[0.2, 0.3, 0.0, 0.0], [0.2, 0.3, 0.0, 0.31]])
    scores = word_attention(weights, torch.tensor([True, True]), share, largest)
    multiples = torch.maximum(weights.sum(0) / 1.31 / share, weights.amax(0) / largest)
    np.testing.assert_allclose(scores, multiples)
    assert largest_indices(scores, 2).tolist() == kept


def test_without_words_the_first_tokens_stay() -> None:
    """Nothing is NaN: a budget measures blocks with rows of zeros."""
    scores = word_attention(torch.rand(3, 4), torch.zeros(3, dtype=torch.bool))
    assert largest_indices(scores, 2).tolist() == [0, 1]


def test_plans() -> None:
    """Layers 3, 7, 11 and 15 of 32 are the first that see fewer; 8 % are protected."""
    halved = (*[64] * 3, *[32] * 4, *[16] * 4, *[8] * 4, *[6] * 17)
    assert Method().plan(64, 32) == halved
    assert Method(protected=0.0).plan(64, 32) == (*halved[:15], *[4] * 17)
    assert Method(tokens="9+3", layers="1+4").plan(64, 5) == (64, 9, 9, 9, 3)


def test_impossible_plans() -> None:
    """One line: what was got, what was expected."""
    with pytest.raises(PlanError, match=r"^mustdrop: got tokens=\d+\+\d+ for layers=\d+,"):
        Method(tokens="9+3", layers=1).plan(64, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "^share is a threshold of attention, above 0, got 0"),
        ({"largest": -1.0}, r"^largest is a threshold of attention, above 0, got -1\.0"),
        ({"protected": 1}, "^protected is a part of the tokens, 0 to below 1, got 1"),
    ],
)
def test_wrong_options(options: dict[str, float], message: str) -> None:
    """Refused when the method is made."""
    with pytest.raises(ValueError, match=message):
        Method(**options)
