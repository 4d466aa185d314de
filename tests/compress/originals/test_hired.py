"""HiRED from the model on: its two layers, its budgets and what it keeps.

The original (hasanar1f/HiRED@502d6dd) hooks queries and keys of layers 0 and 22 of a CLIP tower of
24, of which 22 is the one that gives LLaVA's features. Heads are added up.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

SIDE = 6  # its regions are equal runs of tokens: 36 are four, or three


@pytest.fixture(scope="module")
def model(model_of: Any) -> Any:
    """LLaVA-NeXT of 6 x 6 patches a view."""
    return model_of("llava_next", vision={"image_size": 4 * SIDE})


def original_attention(model: Any, pixels: Tensor, layer: int) -> Tensor:
    """Attention of the class token to patches, heads added up: [P, n]."""
    query, key = model.projections(pixels, layer)
    heads = model.tower.config.num_attention_heads
    rows, columns = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    weights = (rows @ columns.transpose(2, 3) * rows.shape[-1] ** -0.5).softmax(-1)
    return weights[:, :, 0, 1:].sum(1)


@pytest.mark.parametrize("tiles", [(2, 2), (1, 3)])
@pytest.mark.parametrize("alpha", [0.5, 0.3])
def test_kept_tokens_are_the_originals(model: Any, views: Any, tiles: Any, alpha: float) -> None:
    """As many of each tile, or the next best one that the original's rounding leaves out."""
    count = 1 + tiles[0] * tiles[1]
    pixels, tokens = views(count, 4 * SIDE), SIDE * SIDE
    total = int(count * tokens * 0.4)
    exported = model.exported(f"hired:alpha={alpha}", tokens=total, tiles=tiles)
    kept_tokens, positions = exported.reduced(pixels)
    early, late = (original_attention(model, pixels, layer) for layer in (0, -2))
    of_thumbnail = min(int(total * alpha), tokens)
    top = torch.zeros(tokens)
    top[early[0].topk(int(tokens * (1 - alpha))).indices] = 1
    votes = top.reshape(count - 1, -1).sum(1)
    budgets = (votes / votes.sum() * (total - of_thumbnail)).int().clamp(max=tokens)
    assert len(set(budgets.tolist())) > 1
    grid = torch.arange(tokens, count * tokens).reshape(tiles[0], SIDE, tiles[1], SIDE)
    places = [torch.arange(tokens), *grid.transpose(1, 2).flatten(0, 1).flatten(1)]
    mine, spare = set(positions.tolist()), []
    for budget, scores, place in zip([of_thumbnail, *budgets.tolist()], late, places, strict=True):
        here = mine & set(place.tolist())
        assert here == set(place[scores.topk(len(here)).indices].tolist())
        spare.append(len(here) - budget)
    assert spare[0] == 0
    assert set(spare) <= {0, 1}
    features = model.own.model.multi_modal_projector(model.states(pixels)[-2][:, 1:])
    every = features.flatten(0, 1)[torch.cat(places).argsort()]
    torch.testing.assert_close(kept_tokens, every[positions], rtol=1e-4, atol=1e-5)


def test_a_picture_without_tiles_keeps_what_the_original_keeps(
    model: Any, views: Any, traced: Any
) -> None:
    """LLaVA-1.5's variant: the largest late attention; by the graphs too."""
    pixels = views(1, 4 * SIDE)
    exported = model.exported("hired", tokens=10)
    tokens, positions = exported.reduced(pixels)
    late = original_attention(model, pixels, -2)[0]
    assert positions.tolist() == sorted(late.topk(10).indices.tolist())
    features = model.own.model.multi_modal_projector(model.states(pixels)[-2][:, 1:])[0]
    torch.testing.assert_close(tokens, features[positions], rtol=1e-4, atol=1e-5)
    in_graph = exported.reduced(pixels, traced)
    assert torch.equal(in_graph[1], positions)
    torch.testing.assert_close(in_graph[0], tokens)
