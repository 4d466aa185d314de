"""FasterVLM: the class token's attention in the layer of the features, each view by itself.

As Theia-4869/FasterVLM drives CLIP: `attentions[select_layer]`, row of the class token, mean of
heads, top-k; the projector comes after, and rows are taken in raster order.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.mark.parametrize(("tiles", "kept"), [((1, 1), 20), ((1, 2), 60)])
def test_the_model_keeps_the_same_tokens(subject: Any, tiles: tuple[int, int], kept: int) -> None:
    """Features of layer -2; with tiles each of three views keeps a third."""
    case = subject("tiny-llava-next", "fastervlm", kept, tiles=tiles)
    states, layer = case.tower(), case.model.config.vision_feature_layer
    assert layer == -2
    scores = states.attentions[layer][:, :, 0, 1:].mean(1)  # [P, N]
    features = case.model.model.multi_modal_projector(states.hidden_states[layer][:, 1:])
    chosen = scores.topk(kept // len(scores)).indices
    mask = torch.zeros_like(scores).scatter(1, chosen, 1.0)
    tokens, positions = case.exported()
    assert positions == case.packed(mask).nonzero().flatten().tolist()
    numbers = case.packed(torch.arange(mask.numel()).reshape(mask.shape))[positions]
    torch.testing.assert_close(tokens, features.flatten(0, 1)[numbers], rtol=1e-4, atol=1e-5)
