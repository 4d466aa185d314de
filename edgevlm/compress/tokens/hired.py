"""HiRED: split the budget among tiles by the attention to the whole picture.

    thumbnail  min(alpha K, its tokens), the largest late attention
    tile i     the rest of K in proportion to how many of the thumbnail's (1 - alpha) N tokens with
               the largest early attention lie in region i of the thumbnail
    in a tile  the tokens with the largest late attention

Early is the first layer of the encoder, where attention still follows the picture's content by
position; late is the layer that gives the features. The regions are equal runs of the thumbnail's
tokens in raster order, as in the authors' code; `blocks` are the parts of the picture that the
tiles show, as the paper describes them. A picture without tiles, or each frame of a clip, keeps the
tokens with the largest late attention.

Source: HiRED (arXiv 2408.10945), hasanar1f/HiRED. Limits: O(N^2) compares with tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.compress.shared.tiles import (
    largest_of_groups,
    regions,
    split_budget,
    thumbnail,
    tile_of,
)
from edgevlm.graphs.selection import keep_all, largest_indices, select_tokens
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape

COMPARED = "end to end"
SOURCE = (
    "HiRED (arXiv 2408.10945), hasanar1f/HiRED@502d6dd transformers/.../llava_next/"
    "modeling_llava_next.py: HiRED_token_selection, HiRED_sub_img_budgets; .../llava/"
    "modeling_llava.py: HiRED_token_selection"
)
SUMMARY = (
    "HiRED with a fixed number of tokens: splits it among tiles by the thumbnail's early attention,"
    " keeps the largest late attention"
)
FORMULA = (
    "budget of a tile ~ the thumbnail's top early attention in its region; top late attention in it"
)
STATIC = "ranks by counting compares, one top-k over all tiles"
DIFFERS = (
    "K is fixed: where the original rounds the budgets of tiles down, the rest goes to the largest"
    " remainders, so that a tile may keep one token more; in LLaVA-NeXT a newline closes the"
    " tokens (original: none); a tower without a class token is scored by the attention that each"
    " token receives"
)


class Method(TokensMethod):
    """Keeps K tokens, split among the thumbnail and the tiles.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        alpha: The thumbnail's fraction of K.
        regions: `runs` as the original's code has it, or `blocks` as its paper describes them.

    Raises:
        ValueError: For an `alpha` or `regions` that cannot be.
    """

    signals = ("cls_attention", "early_cls_attention")

    def __init__(
        self, tokens: int | None = None, *, alpha: float = 0.5, regions: str = "runs"
    ) -> None:
        if not 0 < float(alpha) < 1:
            raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
        if regions not in ("blocks", "runs"):
            raise ValueError(f"regions must be 'runs' or 'blocks', got '{regions}'")
        self.tokens, self.alpha, self.regions = tokens, float(alpha), regions

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 (of each grid, without tiles) and N.
        """
        kept = kept_tokens("hired", self.tokens, shape.tokens)
        if not shape.global_view:
            grid_budgets("hired", shape, kept)
        return kept

    def __call__(
        self,
        features: Tensor,
        *,
        cls_attention: Tensor,
        early_cls_attention: Tensor,
        shape: VisualShape | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Split the budget, select, then gather in raster order.

        Args:
            features: f32 [1, N, C].
            cls_attention: f32 [1, N], late attention.
            early_cls_attention: f32 [1, N]; that of the thumbnail is used.
            shape: Grids and tiles of the features; None is one square grid.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("hired", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("hired", features)
        check_shape("hired", features, shape)
        if not shape.global_view:
            return select_tokens(features, largest_of_grids(cls_attention[0], shape, kept))
        start, grid = thumbnail("hired", shape)
        own, count = grid[0] * grid[1], shape.tiles[0] * shape.tiles[1]
        of_thumbnail = min(int(kept * self.alpha), own)
        tile = torch.arange(own) * count // own
        if self.regions == "blocks":
            tile = regions(grid, shape.tiles)
        top = early_cls_attention[0, start : start + own].topk(int(own * (1 - self.alpha))).indices
        votes = tile.index_select(0, top).unsqueeze(1) == torch.arange(count)  # [top, P]
        of_tiles = split_budget(votes.to(torch.float32).sum(0), kept - of_thumbnail)
        budgets = torch.cat((of_tiles, torch.tensor([of_thumbnail])))  # the thumbnail's is the last
        positions = largest_of_groups(cls_attention[0], tile_of(shape), budgets, kept)
        return select_tokens(features, positions)


def largest_of_grids(scores: Tensor, shape: VisualShape, kept: int) -> Tensor:
    """Positions i64 [K], ascending, of the largest scores [N] of each grid, by its budget of K."""
    start, positions = 0, []
    for (height, width), budget in zip(
        shape.grids, grid_budgets("hired", shape, kept), strict=True
    ):
        grid = scores[start : start + height * width]
        positions.append(largest_indices(grid, budget) + start)
        start += height * width
    return torch.cat(positions)
