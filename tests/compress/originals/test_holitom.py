"""HoliTom before the language model: frames of LLaVA-OneVision, pooled behind the projector.

The attention is the last that the tower computes, mean of heads and of all queries, pooled as the
tokens are; windows are cut by the cosines of pooled tokens.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor

TAU, NEIGHBOURS, BETA, RATIO = 0.8, 7, 0.6, 0.2963


def windows(similar: Tensor) -> tuple[list[tuple[int, int]], float]:
    """`select_static_windows`: first and last frames, and how many tokens merging saves."""

    def saved(start: int, end: int) -> float:
        return float((similar[start:end] > TAU).all(0).sum() * (end - start))

    best, begins = [0.0], list[int]()
    for end in range(len(similar) + 1):
        gain, start = best[-1], end
        for length in range(2, end + 2):
            total = best[end + 1 - length] + saved(end + 1 - length, end)
            if total > gain:
                gain, start = total, end + 1 - length
        best.append(gain)
        begins.append(start)
    found, end = list[tuple[int, int]](), len(similar)
    while end >= 0:
        found.append((begins[end], end))
        end = begins[end] - 1
    return found[::-1], best[-1]


def clustered(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`merge_tokens_by_density` without its noise: tokens [count, C] and which they are."""
    distance = torch.cdist(tokens, tokens) / tokens.shape[1] ** 0.5
    near = distance.topk(min(NEIGHBOURS, count), largest=False).values
    density = (-near.square().mean(-1)).exp()
    denser = density[None] > density[:, None]
    score = density * torch.where(denser, distance, distance.max()).min(-1).values
    centres = score.topk(count).indices.sort().values
    others = [i for i in range(len(tokens)) if i not in centres.tolist()]
    rows, assigned = tokens[centres].clone(), distance[others][:, centres].argmin(1)
    for number, centre in enumerate(centres):
        mine = tokens[others][assigned == number]
        if len(mine):
            rows[number] = BETA * tokens[centre] + (1 - BETA) * mine.mean(0)
    return rows, centres


def reduced(frames: Tensor, attention: Tensor) -> tuple[dict[int, Tensor], list[int]]:
    """Tokens by their positions, and how many static ones each window has."""
    similar = torch.nn.functional.cosine_similarity(frames[:-1], frames[1:], dim=-1)
    spans, saved = windows(similar)
    size, kept, counts = frames.shape[1], dict[int, Tensor](), list[int]()
    ratio = min(RATIO / (1 - saved / similar.new_ones(len(frames), size).sum().item()), 1)
    for start, end in spans:
        static = (similar[start:end] > TAU).all(0) & torch.tensor(end > start)
        counts.append(int(static.sum()))
        at = static.nonzero()[:, 0]
        if count := round(len(at) * ratio):
            rows, which = clustered(frames[start : end + 1, at].mean(0), count)
            places = (start * size + at[which]).tolist()
            kept |= dict(zip(places, rows, strict=True))
        at = (~static).nonzero()[:, 0]
        for frame in range(start, end + 1):
            best = at[attention[frame, at].topk(ceil(len(at) * ratio)).indices]
            kept |= {frame * size + int(i): frames[frame, i] for i in best}
    return kept, counts


@torch.no_grad()
def test_the_model_keeps_the_same_tokens(llava_onevision: Any, views: Any) -> None:
    """Five frames of 4 x 4 tokens: a window of three, another of two.

    At this ratio the original's rounding and proportions of K give each group as many.
    """
    pixels = views(5).clone()
    pixels[1] = pixels[0] + 0.02 * pixels[1]
    pixels[2, :, :14] = pixels[1, :, :14]
    clip = llava_onevision.own.model.get_video_features(pixels[None], return_dict=True)
    frames = clip.pooler_output[0, :-1].unflatten(0, (5, -1))  # the last row is the newline
    attention = llava_onevision.attention(pixels)[-1].mean((1, 2)).reshape(5, 1, 7, 7)
    pooled = torch.nn.functional.interpolate(attention, size=(4, 4), mode="bilinear").flatten(1)
    expected, counts = reduced(frames, pooled)
    assert counts == [9, 2]
    exported = llava_onevision.exported("holitom@tokens", tokens=len(expected), frames=5)
    tokens, kept = exported.reduced(pixels)
    assert kept.tolist() == sorted(expected)
    rows = torch.stack([expected[place] for place in kept.tolist()])
    torch.testing.assert_close(tokens, rows, rtol=1e-4, atol=1e-4)
