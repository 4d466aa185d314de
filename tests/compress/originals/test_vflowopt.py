"""VFlowOpt before the language model: importance of SigLIP's selected layer, recycling by cell.

As sihany077/VFlowOpt has it in LLaVA-OneVision: importance is made in each view and goes through
the same pooling as the features; tiles are put together before cells are made; a clip and a view
without tiles keep their most important tokens.
"""

from __future__ import annotations

import math
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


def importance(case: Any, t: float, alpha: float) -> Tensor:
    """Of each patch of each view [P, N], by the attention of the layer that gives the features."""
    image, side = case.planned.plan.host.image, case.model.config.vision_config.patch_size
    layer = case.planned.description.encoder.layers - 1
    rows = []
    for weights, pixels in zip(case.tower().attentions[layer].mean(1), case.pixels, strict=True):
        received = weights.mean(0)
        chosen = (received > t * received.mean()).nonzero().flatten()
        assert len(chosen), "the original divides by zero here"
        row = weights[chosen].mean(0) + alpha * entropies(pixels, image, side).softmax(0)
        rows.append(row)
    return torch.stack(rows)


def features(case: Any) -> Tensor:
    """The tower's selected states after the projector, of each view [P, N, C]."""
    layer = case.planned.description.encoder.layers
    return case.model.model.multi_modal_projector(case.tower().hidden_states[layer])


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


@torch.no_grad()
@pytest.mark.parametrize(("t", "alpha"), [(0, 0), (1.2, 0), (1.2, 0.7)])
def test_a_tiled_picture_is_recycled_by_the_same_cells(
    subject: Any, t: float, alpha: float
) -> None:
    """The base image of 14 x 14 and one grid of 14 x 28; 480 of 588 tokens are not kept."""
    probe = subject("tiny-llava-onevision", "vflowopt", 588, tiles=(1, 2))
    scores = probe.packed(importance(probe, t, alpha))
    own = features(probe)
    numbers = probe.packed(torch.arange(588).reshape(3, 196))
    shape = [(14, 14), (14, 28)]
    expected, where = recycled(own.flatten(0, 1)[numbers], scores, shape, 5.5, 480)
    method = f"vflowopt:t={t},alpha={alpha},cell=5.5"
    case = subject("tiny-llava-onevision", method, len(where), tiles=(1, 2))
    tokens, positions = case.exported()
    assert positions == where
    torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0, -0.7])
def test_one_view_keeps_its_most_important_tokens(subject: Any, alpha: float) -> None:
    """Nothing is recycled."""
    case = subject("tiny-llava-onevision", f"vflowopt:t=1.2,alpha={alpha}", 20)
    where = sorted(importance(case, 1.2, alpha)[0].topk(20).indices.tolist())
    tokens, positions = case.exported()
    assert positions == where
    torch.testing.assert_close(tokens, features(case)[0, where], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_clip_keeps_the_most_important_tokens_of_all_frames(subject: Any) -> None:
    """Importance is pooled as the frames are, 2 x 2 bilinearly; frames share the budget."""
    case = subject("tiny-llava-onevision", "vflowopt:t=1.2,alpha=0.5", 30, frames=3)
    grids = importance(case, 1.2, 0.5).reshape(3, 1, 14, 14)
    pooled = torch.nn.functional.interpolate(grids, size=(7, 7), mode="bilinear").flatten()
    clip = case.model.model.get_video_features(case.pixels[None], return_dict=True).pooler_output
    where = sorted(pooled.topk(30).indices.tolist())
    tokens, positions = case.exported()
    assert positions == where
    assert len({p // 49 for p in positions}) == 3
    torch.testing.assert_close(tokens, clip[0, where], rtol=1e-4, atol=1e-5)
