"""Order, masks and gathering without sort."""

from __future__ import annotations

import pytest
import torch

from edgevlm.graphs.selection import (
    ascending,
    descending,
    largest,
    largest_indices,
    marked,
    marked_indices,
    ranks,
    select_tokens,
    unit_rows,
)


def test_ascending() -> None:
    """Order by top-k is order."""
    assert ascending(torch.tensor([[5, 0, 9, 2]])).tolist() == [[0, 2, 5, 9]]


def test_ranks() -> None:
    """Equal scores keep their order."""
    assert ranks(torch.tensor([[0.5, 2.0, 0.5, 3.0, 0.5]])).tolist() == [[2, 1, 3, 0, 4]]
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    order = scores.argsort(1, descending=True)
    assert ranks(scores).gather(1, order).tolist() == [list(range(50))] * 2


def test_unit_rows() -> None:
    """Length 1; zeros stay zeros."""
    assert unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [
        pytest.approx([0.6, 0.8]),
        [0.0, 0.0],
    ]


def test_marked() -> None:
    """A mask and back, in ascending order."""
    mask = marked(torch.tensor([4, 0, 2]), 6)
    assert mask.tolist() == [True, False, True, False, True, False]
    assert marked_indices(mask, 3).tolist() == [0, 2, 4]
    assert marked_indices(~mask, 3).tolist() == [1, 3, 5]


def test_descending() -> None:
    """Largest first; equal scores keep their order."""
    assert descending(torch.tensor([0.5, 2.0, 0.5, 3.0])).tolist() == [3, 1, 0, 2]


def test_largest() -> None:
    """Exactly `count` of each row, the first of equals."""
    scores = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert largest(scores, 3).int().tolist() == [[1, 1, 0, 1, 0], [1, 1, 1, 0, 0]]
    scores = torch.randint(5, (20, 30), generator=torch.Generator().manual_seed(0)).float()
    for count in (1, 7, 30):
        assert torch.equal(largest(scores, count), ranks(scores) < count)


def test_largest_indices() -> None:
    """Ascending, the first of equals."""
    assert largest_indices(torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]


def test_select_tokens() -> None:
    """The tokens, and their positions as i32 with a batch of one."""
    kept, positions = select_tokens(torch.arange(8.0).reshape(1, 4, 2), torch.tensor([1, 3]))
    assert kept.tolist() == [[[2.0, 3.0], [6.0, 7.0]]]
    assert positions.tolist() == [[1, 3]]
    assert positions.dtype == torch.int32
