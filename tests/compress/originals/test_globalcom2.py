"""GlobalCom2 from the model on: its layer, its signal and its sequence, as the original has them.

The original (xuyang-liu16/GlobalCom2@96b2d00) drives LLaVA-NeXT: all layers of the CLIP tower run,
logits are those of the last one before softmax, features those of the last but one after the
projector.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import MethodChoice, Recipe

TILES = [(2, 2), (1, 3), (3, 1)]  # 7 patches a side: rows or columns are left over


def original_logits(model: Any, pixels: Tensor) -> Tensor:
    """The class token's row before softmax, last layer, mean of heads: [P, n]."""
    query, key = model.projections(pixels, -1)
    heads = model.tower.config.num_attention_heads
    rows, columns = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    scores = rows @ columns.transpose(2, 3) * rows.shape[-1] ** -0.5
    return scores.mean(1)[:, 0, 1:]


def original_counts(logits: Tensor, tiles: tuple[int, int], base: float) -> list[int]:
    """Tokens that it keeps of the thumbnail and of each tile; all are rounded down."""
    count, side = logits.shape[1], round(logits.shape[1] ** 0.5)
    rows, columns = tiles
    sums = [0.0] * (rows * columns)
    for index, value in enumerate(logits[0].tolist()):
        row = min(index // side // max(side // rows, 1), rows - 1)
        column = min(index % side // max(side // columns, 1), columns - 1)
        sums[row * columns + column] += value
    weight = (torch.tensor(sums, dtype=torch.float64) / 10).softmax(0)
    shares = (base * (1 + weight - weight.mean())).clamp(max=1)
    return [int(count * base), *(int(count * share) for share in shares.tolist())]


def original_order(logits: Tensor, tiles: tuple[int, int]) -> list[Tensor]:
    """Tokens of the thumbnail and of each tile, those that it would keep first in front."""
    side = round(logits.shape[1] ** 0.5)
    whole = nn.functional.interpolate(
        logits[0].reshape(1, 1, side, side), (tiles[0] * side, tiles[1] * side), mode="bilinear"
    )[0, 0]
    order = [logits[0].argsort(descending=True)]
    for tile, own in enumerate(logits[1:]):
        top, left = tile // tiles[1] * side, tile % tiles[1] * side
        of_thumbnail = whole[top : top + side, left : left + side].flatten()
        unit = nn.functional.normalize(torch.stack((own, of_thumbnail)), dim=1)
        order.append(unit.sum(0).argsort(descending=True))
    return order


def places(tiles: tuple[int, int], side: int) -> list[Tensor]:
    """Position of each token of the thumbnail and of each tile: all tiles are one raster grid."""
    grid = torch.arange(tiles[0] * side * tiles[1] * side) + side * side
    blocks = grid.reshape(tiles[0], side, tiles[1], side).transpose(1, 2).flatten(0, 1)
    return [torch.arange(side * side), *blocks.flatten(1)]


@pytest.mark.parametrize("tiles", TILES)
def test_kept_tokens_are_the_originals(llava_next: Any, views: Any, tiles: Any) -> None:
    """As many of each tile, or the next best one that the original's rounding leaves out."""
    pixels = views(1 + tiles[0] * tiles[1])
    total = 49 * len(pixels)
    exported = llava_next.exported("globalcom2", tokens=total // 2, tiles=tiles)
    tokens, positions = exported.reduced(pixels)
    logits = original_logits(llava_next, pixels)
    assert logits.min() < -0.5 < 0.5 < logits.max()
    counts = original_counts(logits, tiles, total // 2 / total)
    assert max(counts[1:]) - min(counts[1:]) > 3
    mine, spare = set(positions.tolist()), []
    for count, order, place in zip(
        counts, original_order(logits, tiles), places(tiles, 7), strict=True
    ):
        here = mine & set(place.tolist())
        assert here == set(place[order[: len(here)]].tolist())
        spare.append(len(here) - count)
    assert spare[0] == 0
    assert set(spare) <= {0, 1}
    features = llava_next.own.model.multi_modal_projector(llava_next.states(pixels)[-2][:, 1:])
    at = torch.cat(places(tiles, 7)).argsort()
    torch.testing.assert_close(tokens, features.flatten(0, 1)[at][positions], rtol=1e-4, atol=1e-5)


def test_each_row_of_the_grid_keeps_its_newline(preset: Any) -> None:
    """As the original's sequence; with another method one newline at the end remains."""
    model = str(preset("tiny-llava-next"))

    def host(*methods: str, tokens: int | None) -> Any:
        choices = tuple(MethodChoice.parse(method) for method in methods)
        recipe = Recipe(model=model, methods=choices, tokens=tokens, tiles=(2, 2))
        return make_plan(recipe, find(model)).plan.host

    full = host(tokens=None)
    assert [item.kind for item in full.layout.image].count("visual") == 1 + 2 * 14
    reduced = host("globalcom2", tokens=100)
    assert reduced.layout.image == full.layout.image
    assert reduced.image_tokens == 100 + 2 * 14
    assert host("fastervlm", tokens=100).image_tokens == 100 + 1
