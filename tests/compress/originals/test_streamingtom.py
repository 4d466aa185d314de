"""StreamingTOM: frames of LLaVA-OneVision, pooled behind the projector, one after the other.

The tower's last attention, mean of heads and of all queries, is pooled as the tokens are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

THRESHOLD, NEIGHBOURS, BETA = 0.9, 7, 0.6


def centres(tokens: Tensor, count: int) -> Tensor:
    """`_dpc_cluster` without its noise: the centres of static tokens [s, C], ascending."""
    if len(tokens) <= 1:
        return torch.arange(len(tokens))
    distance = torch.cdist(tokens, tokens) / tokens.shape[1] ** 0.5
    near = distance.topk(min(NEIGHBOURS, len(tokens) - 1), largest=False).values
    density = (-(near**2).mean(-1)).exp().double()
    below = density[:, None] > density[None]
    score = density * torch.where(below, distance, distance.max()).min(-1).values
    return score.topk(count).indices.sort().values


def merged(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Each centre with the mean of those that are nearest to it."""
    others = [i for i in range(len(tokens)) if i not in chosen.tolist()]
    rows = tokens[chosen].clone()
    if others:
        assigned = torch.cdist(tokens[others], tokens[chosen]).argmin(1)
        for number, centre in enumerate(chosen):
            mine = tokens[others][assigned == number]
            if len(mine):
                rows[number] = BETA * tokens[centre] + (1 - BETA) * mine.mean(0)
    return rows


def reduced(frame: Tensor, before: Tensor | None, attention: Tensor, kept: int) -> Any:
    """`_classify_tokens` and `_compress_single_frame`: tokens [k, C] and their positions."""
    static = torch.zeros(len(frame), dtype=torch.bool)
    if before is not None:
        static = torch.nn.functional.cosine_similarity(frame, before, dim=-1) > THRESHOLD
    number, total = int(static.sum()), len(frame)
    dynamic = min(kept - int(kept * number / total), total - number)
    places, rows = [], []
    if kept > dynamic:
        at = static.nonzero()[:, 0]
        chosen = centres(frame[at], kept - dynamic)
        rows.append(merged(frame[at], chosen))
        places.append(at[chosen])
    at = (~static).nonzero()[:, 0]
    best = at[attention[at].topk(dynamic).indices]
    places, rows = torch.cat([*places, best]), torch.cat([*rows, frame[best]])
    order = places.argsort()
    return rows[order], places[order], number


@torch.no_grad()
def test_the_model_keeps_the_same_tokens(llava_onevision: Any, views: Any) -> None:
    """Four frames of 4 x 4 tokens: the second as the first but for noise, the third half of it."""
    pixels = views(4).clone()
    pixels[1] = pixels[0] + 0.02 * pixels[1]
    pixels[2, :, :14] = pixels[1, :, :14]
    clip = llava_onevision.own.model.get_video_features(pixels[None], return_dict=True)
    frames = clip.pooler_output[0, :-1].unflatten(0, (4, -1))  # the last row is the newline
    attention = llava_onevision.attention(pixels)[-1].mean((1, 2)).reshape(4, 1, 7, 7)
    pooled = torch.nn.functional.interpolate(attention, size=(4, 4), mode="bilinear").flatten(1)
    rows, places, numbers = [], [], []
    for t, frame in enumerate(frames):
        tokens, at, static = reduced(frame, frames[t - 1] if t else None, pooled[t], 5)
        rows.append(tokens)
        places += (at + 16 * t).tolist()
        numbers.append(static)
    assert numbers[0] == 0
    assert numbers[1] == 16
    assert 0 < numbers[2] < 16
    exported = llava_onevision.exported("streamingtom", tokens=20, frames=4)
    tokens, kept = exported.reduced(pixels)
    assert kept.tolist() == places
    torch.testing.assert_close(tokens, torch.cat(rows), rtol=1e-4, atol=1e-4)
