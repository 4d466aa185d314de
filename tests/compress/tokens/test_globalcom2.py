"""GlobalCom2 by hand: budgets, left-over rows, resizing and padding."""

from __future__ import annotations

import pytest
import torch

from edgevlm.compress.shared.tiles import regions, resize_to_tiles, shown
from edgevlm.compress.tokens.globalcom2 import Method, scales
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape


def test_by_hand() -> None:
    """K = 6 of 12: two of the thumbnail; T is small, so the right tile gets three of four."""
    shape = VisualShape(((2, 2), (2, 2), (2, 2)), 3, (1, 2), "first")
    logits = torch.tensor([[0.0, 0.6, 0.0, 0.4, 0.1, 0.4, 0.3, 0.2, 0.1, 0.2, 0.3, 0.4]])
    features = torch.arange(36.0).reshape(1, 12, 3)
    kept, positions = Method(tokens=6, temperature=1e-3)(features, cls_logits=logits, shape=shape)
    assert positions.tolist() == [[1, 3, 5, 9, 10, 11]]
    assert torch.equal(kept, features[:, positions[0]])


def test_logits_at_the_originals_temperature_move_tokens_between_tiles() -> None:
    """Logits 0.2 higher in one of four tiles of 24x24: its share is about twice another's."""
    logits = torch.zeros(24, 24)
    logits[:12, :12] = 0.2
    share = scales(logits.flatten(), (24, 24), (2, 2), 10.0)
    assert share.tolist() == pytest.approx([1.60587, 0.79804, 0.79804, 0.79804], abs=1e-4)


def test_left_over_rows_and_columns_go_to_the_last_tile() -> None:
    """14 columns in three tiles: 4, 4, 6."""
    columns = regions((1, 14), (1, 3))
    assert torch.bincount(columns).tolist() == [4, 4, 6]
    assert torch.bincount(regions((14, 14), (2, 3))).tolist() == [28, 28, 42, 28, 28, 42]


def test_resizing_equals_pytorch() -> None:
    """Bilinear without aligned corners, for a grid of each tile and for one grid of all."""
    scores = torch.randn(4 * 6, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.interpolate(scores.reshape(1, 1, 4, 6), (8, 18), mode="bilinear")
    packed = resize_to_tiles(scores, VisualShape(((8, 18), (4, 6)), 3, (2, 3), "last"))
    torch.testing.assert_close(packed, torch.cat([wanted.flatten(), scores]))
    single = resize_to_tiles(scores, VisualShape(((4, 6),) * 7, 3, (2, 3), "first"))
    blocks = wanted.reshape(2, 4, 3, 6).transpose(1, 2).flatten()
    torch.testing.assert_close(single, torch.cat([scores, blocks]))


def test_padding_is_kept_last() -> None:
    """Two tiles of 2x2 with a row of padding above and below: the whole is as large as one row."""
    shape = VisualShape(((2, 2), (4, 4)), 1, (2, 2), "first", padding=(1, 0))
    assert shown(shape).tolist() == [True] * 4 + [False] * 4 + [True] * 8 + [False] * 4
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(0))
    logits[:, 4:8] = logits[:, 16:] = 9.0  # what padding has
    for kept in (5, 11, 12):
        _, positions = Method(tokens=kept)(torch.zeros(1, 20, 1), cls_logits=logits, shape=shape)
        assert set(positions[0].tolist()) <= {*range(4), *range(8, 16)}
    _, positions = Method(tokens=14)(torch.zeros(1, 20, 1), cls_logits=logits, shape=shape)
    assert set(positions[0].tolist()) > {*range(4), *range(8, 16)}


def test_refusals() -> None:
    """A picture without tiles, and a temperature of zero."""
    with pytest.raises(PlanError, match=r"^globalcom2: the picture has no tiles beside it"):
        Method(tokens=4).plan(VisualShape(((4, 4),), 8))
    with pytest.raises(ValueError, match=r"^temperature must be above 0, got 0$"):
        Method(tokens=4, temperature=0)
