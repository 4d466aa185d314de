"""Cosines with the frame before, and the tokens that changed most."""

from __future__ import annotations

import pytest
import torch

from edgevlm.compress.shared.changes import after_first, most_changed, similarity
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def test_similarity_by_hand() -> None:
    """A copy twice as long has the same direction; a right angle and a token of zeros have 0."""
    before = torch.tensor([[1.0, 2.0], [1.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    now = torch.tensor([[2.0, 4.0], [0.0, 5.0], [0.0, 0.0], [-1.0, 0.0]])
    expected = torch.tensor([1.0 - 4e-6, 0.0, 0.0, -1.0])
    torch.testing.assert_close(similarity(before, now), expected, rtol=0, atol=1e-6)


def test_copies_tie_and_the_first_is_kept() -> None:
    """Rounding does not choose: of a still clip each frame keeps its first tokens."""
    frame = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    similar = similarity(frame, frame * torch.tensor([1.0, 1.1, 0.7, 3.3, 0.3]).unsqueeze(1))
    assert most_changed(similar[None], (2,)).tolist() == [[True, True, False, False, False]]


def test_each_frame_has_its_budget() -> None:
    similar = torch.tensor([[0.3, 0.1, 0.2], [0.1, 0.3, 0.2], [0.1, 0.2, 0.3]])
    marks = [[False, True, False], [False] * 3, [True, True, False]]
    assert most_changed(similar, (1, 0, 2)).tolist() == marks


def test_the_first_frame_stays_whole() -> None:
    shape = VisualShape(((2, 3),) * 3, 8, frames=3)
    assert after_first("m", shape, 6) == (3, 6, 0)
    assert after_first("m", shape, 11) == (3, 6, 5)
    message = (
        r"^m: got tokens=5, expected 6 to 18: the first of the 3 frames stays whole; keep more"
        r" tokens or use more frames$"
    )
    with pytest.raises(PlanError, match=message):
        after_first("m", shape, 5)
