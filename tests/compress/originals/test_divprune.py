"""DivPrune: cosine distances of the tokens after the projector.

As vbdi/divprune has it in LLaVA 1.5: the projected tokens of one view, before the language model.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def test_the_model_keeps_the_same_tokens(llava_next: Any, views: Any) -> None:
    """The first is furthest from its nearest; each next is furthest from all that are chosen."""
    pixels = views(1)
    features = llava_next.own.model.multi_modal_projector(llava_next.states(pixels)[-2][:, 1:])[0]
    unit = features / features.norm(dim=1, keepdim=True)
    distance = 1.0 - unit @ unit.T
    chosen = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
    while len(chosen) < 20:
        chosen.append(int(distance[chosen].amin(0).argmax()))
    tokens, positions = llava_next.exported("divprune", tokens=20).reduced(pixels)
    assert positions.tolist() == sorted(chosen)
    torch.testing.assert_close(tokens, features[positions], rtol=1e-4, atol=1e-4)
