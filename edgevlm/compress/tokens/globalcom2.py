"""GlobalCom2: attention to the whole picture splits the budget among tiles and helps to choose.

    thumbnail  its budget of K in proportion to its tokens, the largest logits
    tile i     the rest of K in proportion to n[i] s[i], s = 1 + p - mean(p), p = softmax(a / T),
               where n[i] are its tokens and a[i] is the sum of the thumbnail's logits in the part
               of the picture that tile i shows
    in a tile  the tokens with the largest l / |l| + t / |t|, where l are the tile's own logits, t
               the thumbnail's, resized to the tiles (bilinear), and |.| the length over the tile

Logits are scores of the class token in the last layer of the encoder before softmax, mean of heads,
so that their sums differ among tiles by as much as T = 10 asks. Each row of the grid of tiles keeps
its newline, as in the original.

Source: GlobalCom2 (arXiv 2501.05179), xuyang-liu16/GlobalCom2. Limits: pictures with tiles; O(N^2)
compares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.compress.shared.tiles import (
    largest_of_groups,
    regions,
    resize_to_tiles,
    shown,
    shown_tokens,
    split_budget,
    thumbnail,
    tile_of,
)
from edgevlm.graphs.selection import SMALLEST_NORM, keep_all, select_tokens
from edgevlm.graphs.visual_shape import VisualShape

COMPARED = "end to end"
SOURCE = (
    "GlobalCom2 (arXiv 2501.05179), section 3, xuyang-liu16/GlobalCom2@96b2d00"
    " llava/model/llava_arch.py: compress_thumbnail, generate_scale_for_crop_features,"
    " compress_crops; multimodal_encoder/apply_customvit.py"
)
SUMMARY = (
    "GlobalCom2 with a fixed number of tokens: splits it among tiles by the thumbnail's logits, and"
    " keeps what tile and thumbnail attend to"
)
FORMULA = "budget of a tile ~ tokens (1 + softmax(a / T) - mean); top of l/|l| + t/|t| in it"
STATIC = "ranks by counting compares, one top-k over all tiles"
DIFFERS = (
    "K is fixed: the counts of thumbnail and tiles add up to it, where the original rounds each"
    " down, so that a tile may keep one token more; the thumbnail's tokens are in raster order"
    " (original: by logits) and nothing is rounded to float16; of a padded picture tokens stay at"
    " their places (original: moved by the padding before them); a tower without a class token is"
    " scored by the mean logits that each token receives"
)

# Below any sum of two scores of length 1: padding is kept last.
NEVER = -4.0


class Method(TokensMethod):
    """Keeps K tokens, split among the thumbnail and the tiles.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        temperature: T; a small one gives most to the tiles that the thumbnail attends to.

    Raises:
        ValueError: If `temperature` is not above 0.
    """

    signals = ("cls_logits",)
    keeps_rows = True

    def __init__(self, tokens: int | None = None, *, temperature: float = 10.0) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.tokens, self.temperature = tokens, temperature

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N, or the picture has no tiles.
        """
        kept = kept_tokens("globalcom2", self.tokens, shape.tokens)
        if kept < shape.tokens:
            thumbnail("globalcom2", shape)
        return kept

    def __call__(
        self, features: Tensor, *, cls_logits: Tensor, shape: VisualShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Split the budget, select, then gather in raster order.

        Args:
            features: f32 [1, N, C].
            cls_logits: f32 [1, N].
            shape: Grids and tiles of the features; tokens of its padding are kept last.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("globalcom2", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or VisualShape(((1, features.shape[1]),), features.shape[2])
        _, (height, width) = thumbnail("globalcom2", shape)
        of_thumbnail = min(kept * height * width // shown_tokens(shape), height * width)
        budgets = tile_budgets(cls_logits[0], shape, self.temperature, kept - of_thumbnail)
        budgets = torch.cat((budgets, torch.tensor([of_thumbnail, 0])))
        scores = joint_scores(cls_logits[0], shape)
        return select_tokens(features, largest_of_groups(scores, groups(shape), budgets, kept))


def groups(shape: VisualShape) -> Tensor:
    """Group of each token, i64 [N]: its tile, then P the thumbnail, then P + 1 the padding."""
    number, count = tile_of(shape), shape.tiles[0] * shape.tiles[1]
    return number if shape.padding == (0, 0) else torch.where(shown(shape), number, count + 1)


def tile_budgets(logits: Tensor, shape: VisualShape, temperature: float, total: int) -> Tensor:
    """Tokens of each tile, i64 [P], from logits [N]; they add up to `total`."""
    start, grid = thumbnail("globalcom2", shape)
    weights = scales(logits[start : start + grid[0] * grid[1]], grid, shape.tiles, temperature)
    sizes = _members(groups(shape), shape).sum(1)[: weights.shape[0]]
    return split_budget(weights * sizes, total)


def scales(
    logits: Tensor, grid: tuple[int, int], tiles: tuple[int, int], temperature: float
) -> Tensor:
    """s f32 [P] of the tiles from the thumbnail's logits [h*w]: around 1."""
    count = tiles[0] * tiles[1]
    inside = (regions(grid, tiles) == torch.arange(count).unsqueeze(1)).float()  # [P, h*w]
    weight = ((inside @ logits) / temperature).softmax(0)
    return 1 + weight - weight.mean()


def joint_scores(logits: Tensor, shape: VisualShape) -> Tensor:
    """Own logits [N] and the thumbnail's, each divided by its length over its group: f32 [N]."""
    start, (height, width) = thumbnail("globalcom2", shape)
    of_thumbnail = resize_to_tiles(logits[start : start + height * width], shape)
    number, normed = groups(shape), []
    inside = _members(number, shape)
    for scores in (logits, of_thumbnail):
        length = (inside @ scores.square()).sqrt().clamp(min=SMALLEST_NORM)
        normed.append(scores / length.index_select(0, number))
    joint = normed[0] + normed[1]
    return joint if shape.padding == (0, 0) else torch.where(shown(shape), joint, NEVER)


def _members(number: Tensor, shape: VisualShape) -> Tensor:
    """Which token is in which group: f32 [P + 2, N]."""
    count = shape.tiles[0] * shape.tiles[1] + 2
    return (number == torch.arange(count).unsqueeze(1)).float()
