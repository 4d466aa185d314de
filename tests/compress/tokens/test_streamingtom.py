"""StreamingTOM's budgets and a frame of a stream."""

from __future__ import annotations

import pytest
import torch

from edgevlm.compress.tokens.streamingtom import Method, static_budgets
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape

CLIP = VisualShape(((4, 4),) * 4, 16, frames=4)


def test_budgets_are_the_originals() -> None:
    """int(k * s / N), and what the dynamic tokens cannot take."""
    for kept in (1, 3, 7, 12, 16):
        for static in range(17):
            counts = torch.tensor([[float(static)]]), torch.tensor([[float(kept)]])
            found = int(static_budgets(*counts, 16))
            dynamic = min(kept - int(kept * static / 16), 16 - static)
            assert found == kept - dynamic


def test_a_still_frame_by_hand() -> None:
    """Two clusters on a line: a centre is far from all that are less dense than itself.

    By density 0.1, 9.1, 0, 0.3, 9, 9.35; 9.35 has none below it, and of 0.3 the nearest is 9.
    """
    line = torch.tensor([0.0, 0.1, 0.3, 9.0, 9.1, 9.35])
    frame = torch.stack([line, torch.ones(6)], 1)[None]
    method = Method(neighbours=3, beta=0.5)
    tokens, positions = method.of_frame(frame, frame, 2, cls_attention=torch.zeros(1, 6))
    assert positions.tolist() == [[2, 5]]
    expected = torch.tensor([[[(0.3 + 0.05) / 2, 1.0], [(9.35 + 9.05) / 2, 1.0]]])
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)


def test_a_frame_of_a_stream(features: torch.Tensor) -> None:
    """It keeps what it keeps in a clip; before the first frame there are zeros."""
    attention = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    clip, weights = features.reshape(4, 1, 16, 16), attention.reshape(4, 1, 16)
    method = Method(tokens=20, threshold=0.5)
    kept, positions = method(features, shape=CLIP, cls_attention=attention)
    before = torch.zeros(1, 16, 16)
    for t in range(4):
        tokens, own = method.of_frame(clip[t], before, 5, cls_attention=weights[t])
        assert (own + 16 * t).tolist() == positions[:, 5 * t : 5 * t + 5].tolist()
        torch.testing.assert_close(tokens, kept[:, 5 * t : 5 * t + 5], rtol=0, atol=1e-6)
        before = clip[t]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PlanError, match=r"^streamingtom: got tokens=3 for 4 grids"):
        Method(tokens=3).plan(CLIP)
    for options in ({"threshold": 1.0}, {"neighbours": 0}, {"beta": 2.0}):
        with pytest.raises(ValueError, match="threshold must be at least 0"):
            Method(**options)  # type: ignore[arg-type]
