"""FasterVLM against its reference, by hand, and over tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgevlm.compress.tokens.fastervlm import Method
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """The two largest scores, in raster order."""
    features = torch.arange(8.0).reshape(1, 4, 2)
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    kept, positions = Method(tokens=2)(features, cls_attention=scores)
    assert positions.tolist() == [[1, 3]]
    assert torch.equal(kept, features[:, [1, 3]])


def test_equals_reference(vectors: Any) -> None:
    """Same tokens in the same order; the score is the mean of the heads."""
    for case in vectors("fastervlm"):
        count = int(case["param_K"])
        for row, features in enumerate(torch.from_numpy(case["in_features"])):
            scores = torch.from_numpy(case["in_cls_attention"][row]).mean(0, keepdim=True)
            torch.testing.assert_close(scores[0], torch.from_numpy(case["out_score"][row]))
            shape = VisualShape(((1, len(features)),), features.shape[1])
            kept, positions = Method(tokens=count)(
                features[None], cls_attention=scores, shape=shape
            )
            assert torch.equal(kept[0], torch.from_numpy(case["out_tokens"][row]))
            assert positions[0].tolist() == case["out_mask"][row].nonzero()[0].tolist()


def test_each_tile_keeps_its_share() -> None:
    """Two tiles of four tokens: two of each, though the first tile has the four largest scores."""
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.1, 0.3, 0.2, 0.4]])
    shape = VisualShape(((2, 2), (2, 2)), 3)
    _, positions = Method(tokens=4)(torch.zeros(1, 8, 3), cls_attention=scores, shape=shape)
    assert positions.tolist() == [[0, 1, 5, 7]]


def test_fewer_tokens_than_tiles() -> None:
    """Refused: a tile would be lost."""
    with pytest.raises(PlanError, match=r"^fastervlm: got tokens=1 for 2 grids"):
        Method(tokens=1).plan(VisualShape(((2, 2), (2, 2)), 3))
