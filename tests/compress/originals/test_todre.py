"""ToDRE's first stage from the model on, by the paper's equations; there was no code to read."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def test_the_model_keeps_the_same_tokens(subject: Any) -> None:
    """From the token that the thumbnail's class token attends to most, over all views."""
    case = subject("tiny-llava-next", "todre", 30, tiles=(1, 2))
    states, layer = case.tower(), case.model.config.vision_feature_layer
    features = case.model.model.multi_modal_projector(states.hidden_states[layer][:, 1:])
    numbers = torch.arange(features.shape[0] * features.shape[1]).reshape(features.shape[:2])
    rows = torch.nn.functional.normalize(features.flatten(0, 1)[case.packed(numbers)], dim=-1)
    cosine = rows @ rows.T
    chosen = [int(states.attentions[layer][0, :, 0, 1:].mean(0).argmax())]
    while len(chosen) < 30:
        sums = cosine[:, chosen].sum(1)
        sums[chosen] = torch.inf
        chosen.append(int(sums.argmin()))
    assert case.exported()[1] == sorted(chosen)
