"""HiRED against its reference, by hand, and over both ways to order tiles."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.compress.shared.tiles import split_budget, tile_of
from edgevlm.compress.tokens.hired import Method
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape

# A thumbnail of 2x2 before two tiles of 2x2, side by side.
SMALL = VisualShape(((2, 2), (2, 2), (2, 2)), 3, (1, 2), "first")


def test_by_hand() -> None:
    """K = 6: three of the thumbnail; early attention is on the right, so its tile gets the rest.

    As the original counts, one of its two votes lies in the first run of two, for the left tile.
    """
    late = torch.tensor([[0.4, 0.3, 0.2, 0.1, 0.9, 0.8, 0.7, 0.6, 0.1, 0.4, 0.2, 0.3]])
    early = torch.tensor([[0.0, 0.6, 0.0, 0.4, *[0.0] * 8]])
    features = torch.arange(36.0).reshape(1, 12, 3)
    for regions, expected in (("blocks", [0, 1, 2, 9, 10, 11]), ("runs", [0, 1, 2, 4, 5, 9])):
        kept, positions = Method(tokens=6, regions=regions)(
            features, cls_attention=late, early_cls_attention=early, shape=SMALL
        )
        assert positions.tolist() == [expected]
        assert torch.equal(kept, features[:, positions[0]])


def test_shares_add_up() -> None:
    """Largest remainder; equal remainders go to the first."""
    assert split_budget(torch.tensor([1.0, 1.0, 1.0]), 10).tolist() == [4, 3, 3]
    assert split_budget(torch.tensor([5.0, 0.0, 3.0]), 4).tolist() == [3, 0, 1]
    assert split_budget(torch.tensor([2.0, 1.0]), 9).tolist() == [6, 3]


def test_tiles_of_a_packed_grid_and_of_single_grids() -> None:
    """One packed grid of 1x2 tiles of 2x2, and a grid for each, the thumbnail last."""
    packed = VisualShape(((2, 2), (2, 4)), 3, (1, 2), "first")
    assert tile_of(packed).tolist() == [2] * 4 + [0, 0, 1, 1] * 2
    single = VisualShape(((2, 2),) * 3, 3, (1, 2), "last")
    assert tile_of(single).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_tiles_are_not_divided_in_the_graph(trace: Any) -> None:
    """Core ML's converter makes floats of divided integers, and a float is no index."""

    def tiles(scores: Tensor) -> Tensor:
        return scores.index_select(0, tile_of(SMALL))

    targets = [str(node.target) for node in trace(tiles, torch.rand(3)).graph.nodes]
    assert not any("div" in target for target in targets)
    assert tiles(torch.arange(3.0)).tolist() == [2.0] * 4 + [0.0] * 4 + [1.0] * 4


def case_inputs(case: dict[str, Any]) -> tuple[VisualShape, Tensor, Tensor, int]:
    late = torch.from_numpy(case["in_late_layer_cls_attn"]).sum(1)[:, 1:]
    early = torch.from_numpy(case["in_first_layer_cls_attn"]).sum(1)[:, 1:]
    views, tokens = late.shape
    side = round(tokens**0.5)
    rows, columns = (int(n) for n in case["out_grid"])
    shape = VisualShape(((side, side),) * views, 2, (rows, columns), "first")
    return shape, late, early, int(views * tokens * float(case["param_token_budget_rate"]))


def test_equals_reference(vectors: Any) -> None:
    """All that the original keeps, and at most one more a tile: it rounds shares down."""
    for case in vectors("hired"):
        shape, late, early, kept = case_inputs(case)
        method = Method(tokens=kept, alpha=float(case["param_alpha"]))
        _, positions = method(
            torch.zeros(1, shape.tokens, 2),
            cls_attention=late.reshape(1, -1),
            early_cls_attention=early.reshape(1, -1),
            shape=shape,
        )
        mine = np.zeros(shape.tokens, bool)
        mine[positions[0].numpy()] = True
        theirs = case["out_mask"].reshape(-1)
        assert not (theirs & ~mine).any()
        extra = (mine & ~theirs).reshape(len(late), -1).sum(1)
        assert extra[0] == 0
        assert extra.max() <= 1
        assert extra.sum() == kept - theirs.sum() < len(late)


def test_a_single_image_equals_the_reference(vectors: Any) -> None:
    """The thumbnail alone, as LLaVA-1.5 has it."""
    for case in vectors("hired"):
        late = torch.from_numpy(case["in_late_layer_cls_attn"]).sum(1)[:1, 1:]
        expected = np.flatnonzero(case["out_single_image_mask"])
        features = torch.zeros(1, late.shape[1], 2)
        _, positions = Method(tokens=len(expected))(
            features, cls_attention=late, early_cls_attention=late
        )
        np.testing.assert_array_equal(positions[0], expected)


def test_frames_have_budgets_by_their_tokens() -> None:
    """Two grids of 4 and 2 tokens, K = 3: two of the first and one of the second."""
    late = torch.tensor([[0.1, 0.9, 0.8, 0.7, 0.2, 0.3]])
    _, positions = Method(tokens=3)(
        torch.zeros(1, 6, 2),
        cls_attention=late,
        early_cls_attention=late,
        shape=VisualShape(((2, 2), (1, 2)), 2),
    )
    assert positions.tolist() == [[1, 2, 5]]


def test_onnx_makes_the_same_choice(vectors: Any, trace: Any, engine: Any) -> None:
    """Budgets that depend on the picture are arithmetic in the graph."""
    case = next(iter(vectors("hired")))
    shape, late, early, kept = case_inputs(case)
    method = Method(tokens=kept, alpha=float(case["param_alpha"]))

    def call(features: Tensor, late: Tensor, early: Tensor) -> Any:
        return partial(method, shape=shape)(features, cls_attention=late, early_cls_attention=early)

    given = torch.zeros(1, shape.tokens, 2), late.reshape(1, -1), early.reshape(1, -1)
    _, positions = call(*given)
    _, in_onnx = engine(trace(call, *given))(*given)
    np.testing.assert_array_equal(in_onnx, positions.numpy())


def test_a_tile_with_fewer_tokens_than_its_share() -> None:
    """The rest goes to the best of all others: still K tokens."""
    late = torch.rand(1, 12, generator=torch.Generator().manual_seed(0))
    early = torch.tensor([[0.6, 0.0, 0.4, 0.0, *[0.0] * 8]])
    method = Method(tokens=11, alpha=0.3)
    _, positions = method(
        torch.zeros(1, 12, 3), cls_attention=late, early_cls_attention=early, shape=SMALL
    )
    assert positions.shape == (1, 11)
    assert set(range(4, 8)) <= set(positions[0].tolist())


def test_refusals() -> None:
    """One line each."""
    with pytest.raises(PlanError, match=r"^hired: got tokens=1 for 2 grids"):
        Method(tokens=1).plan(VisualShape(((4, 4), (4, 4)), 3))
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, got 1"):
        Method(tokens=4, alpha=1)
    with pytest.raises(ValueError, match="regions must be 'runs' or 'blocks', got 'x'"):
        Method(tokens=4, regions="x")
