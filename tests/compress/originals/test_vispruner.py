"""VisPruner: duplicates are told by the tower's own tokens, before the projector, in each view.

As Theia-4869/VisPruner drives CLIP: `hidden_states[select_layer]` and `attentions[select_layer]`;
the projector comes after the choice.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


def chosen(features: Tensor, attention: Tensor, kept: int) -> set[int]:
    """One view: half by attention, then rounds of eight of the rest, by cosine of even and odd."""
    order = attention.argsort(descending=True).tolist()
    first, rest = order[: kept // 2], order[kept // 2 :]
    unit = torch.nn.functional.normalize(features, dim=-1)
    while (surplus := len(rest) - (kept - kept // 2)) > 0:
        even, odd = rest[::2], rest[1::2]
        nearest = (unit[even] @ unit[odd].T).amax(1)
        stays = nearest.argsort(descending=True)[min(8, surplus) :]
        rest = [even[i] for i in stays.tolist()] + odd
    return {*first, *rest}


@pytest.mark.parametrize(("tiles", "kept"), [((1, 1), 20), ((1, 2), 60)])
def test_the_model_keeps_the_same_tokens(subject: Any, tiles: tuple[int, int], kept: int) -> None:
    """Other tokens than by the cosines after the projector."""
    case = subject("tiny-llava-next", "vispruner", kept, tiles=tiles)
    states, layer = case.tower(), case.model.config.vision_feature_layer
    before = states.hidden_states[layer][:, 1:]
    after = case.model.model.multi_modal_projector(before)
    attention = states.attentions[layer][:, :, 0, 1:].mean(1)
    share, found = kept // len(before), []
    for features in (before, after):
        mask = torch.zeros(features.shape[:2])
        for view, rows in enumerate(features):
            mask[view, list(chosen(rows, attention[view], share))] = 1.0
        found.append(case.packed(mask).nonzero().flatten().tolist())
    assert found[0] != found[1]
    assert case.exported()[1] == found[0]
