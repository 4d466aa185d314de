"""GlobalCom2 against its reference, by hand, and its resizing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.shared.tiles import largest_of_groups, resize_to_tiles
from edgevlm.compress.tokens.globalcom2 import Method, joint_scores, scales
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """K = 6 of 12: two of the thumbnail; T is small, so the right tile gets three of four."""
    shape = VisualShape(((2, 2), (2, 2), (2, 2)), 3, (1, 2), "first")
    attention = torch.tensor([[0.0, 0.6, 0.0, 0.4, 0.1, 0.4, 0.3, 0.2, 0.1, 0.2, 0.3, 0.4]])
    features = torch.arange(36.0).reshape(1, 12, 3)
    kept, positions = Method(tokens=6, temperature=1e-3)(
        features, cls_attention=attention, shape=shape
    )
    assert positions.tolist() == [[1, 3, 5, 9, 10, 11]]
    assert torch.equal(kept, features[:, positions[0]])


def test_resizing_equals_pytorch() -> None:
    """Bilinear without aligned corners, for a grid of each tile and for one grid of all."""
    scores = torch.randn(4 * 6, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.interpolate(scores.reshape(1, 1, 4, 6), (8, 18), mode="bilinear")
    packed = resize_to_tiles(scores, VisualShape(((8, 18), (4, 6)), 3, (2, 3), "last"))
    torch.testing.assert_close(packed, torch.cat([wanted.flatten(), scores]))
    single = resize_to_tiles(scores, VisualShape(((4, 6),) * 7, 3, (2, 3), "first"))
    blocks = wanted.reshape(2, 4, 3, 6).transpose(1, 2).flatten()
    torch.testing.assert_close(single, torch.cat([scores, blocks]))


def outputs(case: dict[str, Any], attention: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the tiles, and what is kept at the original's counts, over thumbnail and tiles."""
    views, tokens = attention.shape
    side = round(tokens**0.5)
    tiles = int(case["param_num_patch_height"]), int(case["param_num_patch_width"])
    shape = VisualShape(((side, side),) * views, 2, tiles, "first")
    groups = torch.arange(views).repeat_interleave(tokens)
    scores = joint_scores(attention.flatten(), resize_to_tiles(attention[0], shape), groups, views)
    counts = [len(case["out_thumbnail_indices"]), *case["out_counts"].tolist()]
    kept = largest_of_groups(scores, groups, torch.tensor(counts), sum(counts))
    share = scales(attention[0], (side, side), tiles, float(case["param_temperature"]))
    return share * float(case["param_base_scale"]), kept


def test_equals_reference(vectors: Any, trace: Any, engine: Any) -> None:
    """Where the picture fills its tiles: shares, and the tokens at the original's counts."""
    compared = 0
    for case in vectors("globalcom2"):
        if not case["out_unpad_mask"].all():
            continue
        compared += 1
        attention = torch.from_numpy(case["in_cls_attn"])
        tokens = attention.shape[1]
        numbers = np.arange(1, len(attention)).repeat(case["out_counts"])
        tiles = np.sort(case["out_crop_indices_in_full"] + numbers * tokens)
        expected = np.concatenate([np.sort(case["out_thumbnail_indices"]), tiles])

        def run(x: Tensor, case: dict[str, Any] = case) -> tuple[Tensor, Tensor]:
            return outputs(case, x)

        for share, kept in (run(attention), engine(trace(run, attention))(attention)):
            np.testing.assert_allclose(share, case["out_scales"], rtol=0, atol=1e-5)
            np.testing.assert_array_equal(kept, expected)
    assert compared >= 2


def test_refusals() -> None:
    """A picture without tiles, and a temperature of zero."""
    with pytest.raises(PlanError, match=r"^globalcom2: the picture has no tiles beside it"):
        Method(tokens=4).plan(VisualShape(((4, 4),), 8))
    with pytest.raises(ValueError, match=r"^temperature must be above 0, got 0$"):
        Method(tokens=4, temperature=0)
