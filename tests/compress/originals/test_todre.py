"""ToDRE's first stage from the model on, by the paper's equations; there was no code to read."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def test_the_model_keeps_the_same_tokens(llava_next: Any, views: Any) -> None:
    """From the token that the thumbnail's class token attends to most, over all views."""
    pixels = views(3)
    features = llava_next.own.model.multi_modal_projector(llava_next.states(pixels)[-2][:, 1:])
    exported = llava_next.exported("todre", tokens=30, tiles=(1, 2))
    numbers = exported.packed(torch.arange(147).reshape(3, 49))
    rows = torch.nn.functional.normalize(features.flatten(0, 1)[numbers], dim=-1)
    cosine = rows @ rows.T
    chosen = [int(llava_next.attention(pixels)[-2][0, :, 0, 1:].mean(0).argmax())]
    while len(chosen) < 30:
        sums = cosine[:, chosen].sum(1)
        sums[chosen] = torch.inf
        chosen.append(int(sums.argmin()))
    assert exported.reduced(pixels)[1].tolist() == sorted(chosen)
