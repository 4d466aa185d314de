"""GlobalCom2: attention to the whole picture splits the budget among tiles and helps to choose.

    thumbnail  its budget of K in proportion to its tokens, the largest attention
    tile i     the rest of K in proportion to s[i] = 1 + p[i] - mean(p), p = softmax(a / T), where
               a[i] is the thumbnail's attention to the part of the picture that tile i shows
    in a tile  the tokens with the largest g / |g| + t / |t|, where g is the tile's own attention,
               t the thumbnail's, resized to the tile (bilinear), and |.| the length over the tile

Source: GlobalCom2 (arXiv 2501.05179), xuyang-liu16/GlobalCom2. Limits: pictures with tiles; O(N^2)
compares. T = 10, the original's, makes budgets nearly equal.
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
    split_budget,
    thumbnail,
    tile_of,
)
from edgevlm.graphs.selection import SMALLEST_NORM, keep_all, select_tokens
from edgevlm.graphs.visual_shape import VisualShape

SOURCE = (
    "GlobalCom2 (arXiv 2501.05179), section 3, xuyang-liu16/GlobalCom2@96b2d00"
    " llava/model/llava_arch.py: compress_thumbnail, generate_scale_for_crop_features,"
    " compress_crops"
)
SUMMARY = (
    "splits the budget among tiles by the thumbnail's attention, keeps what tile and thumbnail"
    " attend to"
)
FORMULA = "budget of a tile ~ 1 + softmax(a / T) - mean; top of g/|g| + t/|t| in it"
STATIC = "ranks by counting compares, one top-k over all tiles"
DIFFERS = (
    "same thumbnail tokens, same budgets before rounding, and same tokens at the same counts as the"
    " original where the picture fills its tiles; exactly K tokens (original: all counts rounded"
    " down); the picture always fills the grid of tiles, so nothing is unpadded and no newline is"
    " put between rows; where the thumbnail's side does not divide by the tiles its rows are split"
    " evenly (original: the last ones are left out); features are those after the projector; a"
    " tower without a class token is scored by the attention that each token receives"
)


class Method(TokensMethod):
    """Keeps K tokens, split among the thumbnail and the tiles.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        temperature: T; a small one gives most to the tiles that the thumbnail attends to.

    Raises:
        ValueError: If `temperature` is not above 0.
    """

    signals = ("cls_attention",)

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
        self, features: Tensor, *, cls_attention: Tensor, shape: VisualShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Split the budget, select, then gather in raster order.

        Args:
            features: f32 [1, N, C].
            cls_attention: f32 [1, N].
            shape: Grids and tiles of the features.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("globalcom2", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or VisualShape(((1, features.shape[1]),), features.shape[2])
        start, grid = thumbnail("globalcom2", shape)
        own, count = grid[0] * grid[1], shape.tiles[0] * shape.tiles[1]
        of_thumbnail = kept * own // shape.tokens
        groups = tile_of(shape)
        groups = torch.where(groups < 0, count, groups)  # the thumbnail is the last
        scores = cls_attention[0, start : start + own]  # of the thumbnail
        weights = scales(scores, grid, shape.tiles, self.temperature)
        of_tiles = split_budget(weights, kept - of_thumbnail)
        joint = joint_scores(cls_attention[0], resize_to_tiles(scores, shape), groups, count + 1)
        budgets = torch.cat((of_tiles, torch.tensor([of_thumbnail])))
        return select_tokens(features, largest_of_groups(joint, groups, budgets, kept))


def scales(
    attention: Tensor, grid: tuple[int, int], tiles: tuple[int, int], temperature: float
) -> Tensor:
    """s f32 [R*C] of the tiles from the thumbnail's attention [h*w]: around 1."""
    count = tiles[0] * tiles[1]
    inside = (regions(grid, tiles) == torch.arange(count).unsqueeze(1)).float()  # [P, h*w]
    weight = ((inside @ attention) / temperature).softmax(0)
    return 1 + weight - weight.mean()


def joint_scores(of_tile: Tensor, of_thumbnail: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sum of two scores [N], each divided by its length over its group; groups are constant."""
    inside = (groups == torch.arange(count).unsqueeze(1)).float()  # [G, N]
    normed = []
    for scores in (of_tile, of_thumbnail):
        length = (inside @ scores.square()).sqrt().clamp(min=SMALLEST_NORM)
        normed.append(scores / length.index_select(0, groups))
    return normed[0] + normed[1]
