"""VisPruner: duplicates are told by the tower's own tokens, before the projector, in each view.

As Theia-4869/VisPruner drives CLIP: `hidden_states[select_layer]` and `attentions[select_layer]`;
the projector comes after the choice.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

LAYER = -2  # select_layer


def chosen(features: Tensor, attention: Tensor, kept: int) -> list[int]:
    """One view: half by attention, then rounds of eight of the rest, by cosine of even and odd."""
    order = attention.argsort(descending=True).tolist()
    first, rest = order[: kept // 2], order[kept // 2 :]
    unit = torch.nn.functional.normalize(features, dim=-1)
    while (surplus := len(rest) - (kept - kept // 2)) > 0:
        even, odd = rest[::2], rest[1::2]
        nearest = (unit[even] @ unit[odd].T).amax(1)
        stays = nearest.argsort(descending=True)[min(8, surplus) :]
        rest = [even[i] for i in stays.tolist()] + odd
    return [*first, *rest]


@pytest.mark.parametrize(("tiles", "count"), [((1, 1), 1), ((2, 2), 5)])
@torch.no_grad()
def test_the_model_keeps_the_same_tokens(
    llava_next: Any, views: Any, tiles: tuple[int, int], count: int
) -> None:
    """Twelve of each view; other ones than by the cosines after the projector."""
    pixels = views(count)
    before = llava_next.states(pixels)[LAYER][:, 1:]
    after = llava_next.own.model.multi_modal_projector(before)
    attention = llava_next.attention(pixels)[LAYER][:, :, 0, 1:].mean(1)
    exported, found = llava_next.exported("vispruner", tokens=12 * count, tiles=tiles), []
    for features in (before, after):
        mask = torch.zeros(features.shape[:2])
        for view, rows in enumerate(features):
            mask[view, chosen(rows, attention[view], 12)] = 1.0
        found.append(exported.packed(mask).nonzero().flatten().tolist())
    assert found[0] != found[1]
    assert exported.reduced(pixels)[1].tolist() == found[0]
