"""k-medoids of the segments of a clip; the clustering itself is in vision/test_centerclip.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgevlm.compress.tokens.k_medoids import Method
from edgevlm.errors import PlanError
from edgevlm.graphs.clips.medoids import medoids
from edgevlm.graphs.visual_shape import VisualShape


def test_segments_are_clustered_by_themselves(engine: Any, trace: Any) -> None:
    x = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(2))
    method = Method(tokens=6, segments=2)
    for tokens, positions in (method(x), engine(trace(method, x))(x)):
        first, second = (medoids(part, 3, 8)[0][0] for part in (x[:, :12], x[:, 12:]))
        expected = [*first.tolist(), *(second + 12).tolist()]
        assert positions[0].tolist() == expected
        torch.testing.assert_close(torch.as_tensor(tokens), x[:, expected])


def test_segments_divide_frames_and_tokens() -> None:
    shape = VisualShape(((2, 2),) * 6, 8, frames=6)
    assert Method(tokens=12, segments=3).plan(shape) == 12
    for tokens, segments in ((12, 4), (10, 3)):
        with pytest.raises(PlanError, match=r"^k_medoids: got segments="):
            Method(tokens=tokens, segments=segments).plan(shape)
