"""FasterVLM: the class token's attention in the layer of the features, each view by itself.

As Theia-4869/FasterVLM drives CLIP: `attentions[select_layer]`, row of the class token, mean of
heads, top-k; the projector comes after, and rows are taken in raster order.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

LAYER = -2  # select_layer


@pytest.mark.parametrize(("tiles", "count"), [((1, 1), 1), ((2, 2), 5)])
@torch.no_grad()
def test_the_model_keeps_the_same_tokens(
    llava_next: Any, views: Any, tiles: tuple[int, int], count: int
) -> None:
    """Twelve tokens of each view."""
    pixels = views(count)
    features = llava_next.own.model.multi_modal_projector(llava_next.states(pixels)[LAYER][:, 1:])
    scores = llava_next.attention(pixels)[LAYER][:, :, 0, 1:].mean(1)  # [P, N]
    mask = torch.zeros_like(scores).scatter(1, scores.topk(12).indices, 1.0)
    exported = llava_next.exported("fastervlm", tokens=12 * count, tiles=tiles)
    tokens, positions = exported.reduced(pixels)
    assert positions.tolist() == exported.packed(mask).nonzero().flatten().tolist()
    numbers = exported.packed(torch.arange(mask.numel()).reshape(mask.shape))[positions]
    torch.testing.assert_close(tokens, features.flatten(0, 1)[numbers], rtol=1e-4, atol=1e-4)
