"""VFlowOpt before the language model: importance of SigLIP's selected layer, recycling by cell.

As sihany077/VFlowOpt has it in LLaVA-OneVision: importance is made in each view and goes through
the same pooling as the features; tiles are put together before cells are made; a clip and a view
without tiles keep their most important tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


def entropies(pixels: Tensor, image: Any, side: int) -> Tensor:
    """Bits of the grey values of each patch of one view f32 [3, h, w], in raster order."""
    mean, std = (np.array(three)[:, None, None] for three in (image.mean, image.std))
    values = np.rint((pixels.numpy() * std + mean) * 255)
    grey = np.rint(np.float32(0.3333) * values.astype(np.float32).sum(0))
    bits = []
    for top in range(0, grey.shape[0], side):
        for left in range(0, grey.shape[1], side):
            _, counts = np.unique(grey[top : top + side, left : left + side], return_counts=True)
            shares = counts / counts.sum()
            bits.append(float(-(shares * np.log2(shares)).sum()))
    return torch.tensor(bits)


def importance(model: Any, pixels: Tensor, image: Any, t: float, alpha: float) -> Tensor:
    """Of each patch of each view [P, N], by the attention of the layer that gives the features."""
    rows = []
    for weights, view in zip(model.attention(pixels)[-1].mean(1), pixels, strict=True):
        received = weights.mean(0)
        chosen = (received > t * received.mean()).nonzero().flatten()
        assert len(chosen), "the original divides by zero here"
        bits = entropies(view, image, model.own.config.vision_config.patch_size)
        rows.append(weights[chosen].mean(0) + alpha * bits.softmax(0))
    return torch.stack(rows)


def features(model: Any, pixels: Tensor) -> Tensor:
    """The tower's states after the projector, of each view [P, N, C]."""
    return model.own.model.multi_modal_projector(model.states(pixels)[-1])


def recycled(
    rows: Tensor, scores: Tensor, grids: list[tuple[int, int]], cell: float, low: int
) -> tuple[Tensor, list[int]]:
    """Tokens and positions when the `low` least important become one token a cell."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for token in scores.argsort()[:low].tolist():
        grid, start = 0, 0
        while token >= start + math.prod(grids[grid]):
            start, grid = start + math.prod(grids[grid]), grid + 1
        row, column = divmod(token - start, grids[grid][1])
        key = (grid, math.floor(row / cell), math.floor(column / cell))
        groups.setdefault(key, []).append(token)
    stays = {int(i): rows[i] for i in scores.argsort()[low:]}
    for members in groups.values():
        weights = scores[members] / scores[members].sum()
        stays[members[int(scores[members].argmax())]] = weights @ rows[members]
    order = sorted(stays)
    return torch.stack([stays[i] for i in order]), order


@pytest.fixture
def pictures(llava_onevision: Any) -> Callable[[int], Tensor]:
    """Views of 8 bits: flat fields with more or less noise, so that entropies differ."""
    image = llava_onevision.exported(tokens=1).description.image

    def make(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        size = (image.height, image.width)
        fields = torch.rand(count, 4, 7, 7, generator=generator)
        fields = torch.nn.functional.interpolate(fields, size)
        noise = torch.rand(count, 3, *size, generator=generator) - 0.5
        values = ((fields[:, :3] + noise * fields[:, 3:]).clamp(0, 1) * 255).round() / 255
        mean, std = (torch.tensor(three)[:, None, None] for three in (image.mean, image.std))
        return (values - mean) / std

    return make


@torch.no_grad()
@pytest.mark.parametrize(("t", "alpha"), [(0, 0), (1.2, 0), (1.2, 0.7)])
def test_a_tiled_picture_is_recycled_by_the_same_cells(
    llava_onevision: Any, pictures: Any, t: float, alpha: float
) -> None:
    """The base image of 7 x 7 and one grid of 7 x 14; 110 of 147 tokens are not kept."""
    pixels, method = pictures(3), f"vflowopt:t={t},alpha={alpha},cell=3.5"
    probe = llava_onevision.exported(method, tokens=147, tiles=(1, 2))
    of_views = importance(llava_onevision, pixels, probe.description.image, t, alpha)
    scores, numbers = probe.packed(of_views), probe.packed(torch.arange(147).reshape(3, 49))
    rows = features(llava_onevision, pixels).flatten(0, 1)[numbers]
    expected, where = recycled(rows, scores, [(7, 7), (7, 14)], 3.5, 110)
    exported = llava_onevision.exported(method, tokens=len(where), tiles=(1, 2))
    tokens, positions = exported.reduced(pixels)
    assert positions.tolist() == where
    torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0, -0.7])
def test_one_view_keeps_its_most_important_tokens(
    llava_onevision: Any, pictures: Any, alpha: float
) -> None:
    """Nothing is recycled."""
    pixels = pictures(1)
    exported = llava_onevision.exported(f"vflowopt:t=1.2,alpha={alpha}", tokens=12)
    scores = importance(llava_onevision, pixels, exported.description.image, 1.2, alpha)[0]
    where = sorted(scores.topk(12).indices.tolist())
    tokens, positions = exported.reduced(pixels)
    assert positions.tolist() == where
    rows = features(llava_onevision, pixels)[0, where]
    torch.testing.assert_close(tokens, rows, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_clip_keeps_the_most_important_tokens_of_all_frames(
    llava_onevision: Any, pictures: Any
) -> None:
    """Importance is pooled as the frames are, bilinearly; frames share the budget."""
    pixels = pictures(3)
    exported = llava_onevision.exported("vflowopt:t=1.2,alpha=0.5", tokens=14, frames=3)
    scores = importance(llava_onevision, pixels, exported.description.image, 1.2, 0.5)
    grids = scores.reshape(3, 1, 7, 7)
    pooled = torch.nn.functional.interpolate(grids, size=(4, 4), mode="bilinear").flatten()
    clip = llava_onevision.own.model.get_video_features(pixels[None], return_dict=True)
    where = sorted(pooled.topk(14).indices.tolist())
    tokens, positions = exported.reduced(pixels)
    assert positions.tolist() == where
    assert {p // 16 for p in where} == {0, 1, 2}
    torch.testing.assert_close(tokens, clip.pooler_output[0, where], rtol=1e-4, atol=1e-4)
