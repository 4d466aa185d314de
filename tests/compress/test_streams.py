"""What a stream keeps of a frame."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from edgevlm.compress.shared.streams import Changed, OfFrame, spread
from edgevlm.compress.tokens import timechat
from edgevlm.compress.tokens.average_pool import Method
from edgevlm.errors import PlanError
from edgevlm.graphs.visual_shape import VisualShape

FRAME = VisualShape(((3, 4),), 8)


def test_the_patches_that_changed_most_are_kept():
    torch.manual_seed(0)
    previous = torch.randn(1, 12, 8)
    features = 3 * previous  # of the same direction
    features[0, [2, 7]] = torch.randn(2, 8)
    features[0, 11] = -previous[0, 11]
    tokens, positions = Changed(3, FRAME)(previous, features)
    assert positions.tolist() == [[2, 7, 11]]
    assert torch.equal(tokens, features[:, [2, 7, 11]])
    assert Changed(1, FRAME)(previous, features)[1].tolist() == [[11]]


def test_a_still_scene_and_a_first_frame_keep_a_spread_of_patches():
    features = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    keep = Changed(4, VisualShape(((4, 4),), 8))
    for previous in (torch.zeros_like(features), features):
        assert keep(previous, features)[1].tolist() == [[0, 2, 8, 10]]


def test_the_order_has_each_place_once():
    assert sorted(spread(FRAME)) == list(range(12))
    assert sorted(spread(VisualShape(((1, 1),), 8))) == [0]


def test_all_are_kept_as_they_are():
    features = torch.randn(1, 12, 8)
    assert Changed(12, FRAME)(features, features)[0] is features


def test_a_method_of_a_frame_is_that_method():
    features = torch.randn(1, 12, 8)
    for ours, own in zip(
        OfFrame(Method(3), 3, FRAME)(features, features),
        Method(3)(features, shape=FRAME),
        strict=True,
    ):
        assert torch.equal(ours, own)


def test_a_causal_method_takes_the_frame_before():
    torch.manual_seed(0)
    previous, features = torch.randn(1, 12, 8), torch.randn(1, 12, 8)
    ours = OfFrame(timechat.Method(3), 3, FRAME)(previous, features)[1]
    assert torch.equal(ours, Changed(3, FRAME)(previous, features)[1])


@pytest.mark.parametrize(
    "make", [lambda: Changed(13, FRAME), lambda: OfFrame(Method(13), 13, FRAME)]
)
def test_more_tokens_than_a_frame_has_are_refused(make):
    with pytest.raises(PlanError, match="13"):
        make()
