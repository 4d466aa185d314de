"""Merge tokens over neighbouring frames: pairs of frames are joined, level by level, down to K.

    level   clips of 1, 2, 4, … frames; two neighbours become one clip, the last may be alone
    tokens  F N -> K by the same ratio at each level; a clip's part goes by its frames
    round   in a clip tokens of even index find the nearest of odd index, by cosine; the best pairs
            merge to the mean of all tokens that they stand for; as many rounds as it takes

Tokens that stay come first in a clip, then those that others merged into, so a joined clip mixes
its frames. The last clip has all tokens and leaves K.

Source: the matching and the mean are TempMe's, which merges so between layers of CLIP; behind the
projector, over all tokens and to any K, they are ours. Limits: a matching and a product a clip, the
last of which is O((F N)^2) in the worst case.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.matching import match_joined
from edgevlm.graphs.selection import in_raster_order, keep_all
from edgevlm.graphs.visual_shape import VisualShape, clip_frames, frames_of

SOURCE = (
    "after TempMe, LunarShen/TempMe@e624930 tvr/models/module_tome_merge.py:"
    " bipartite_soft_matching, merge_wavg"
)
SUMMARY = "merges similar tokens of neighbouring frames, joined in pairs level by level, until K"
FORMULA = "y = mean of what argmax cos(x_even, x_odd) joins in 1, 2, 4, … frames, weighted by size"
STATIC = "F - 1 joined clips, a matching and one product a round"
DIFFERS = (
    "not TempMe, which merges between layers of the encoder, with its own rate at each, and learned"
    " positions of clips: the same matching and mean, on what the projector gives. Tokens are in"
    " raster order of destinations"
)
COMPARED = "vectors"


# Tokens f32 [n, C], how many tokens each stands for f32 [n, 1], and their positions i64 [n].
Clip = tuple[Tensor, Tensor, Tensor]


class Method(TokensMethod):
    """Merges the tokens of a clip to K.

    Args:
        tokens: K, number of tokens kept of the clip; None keeps all.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: Of a still picture, or if K is not between 1 and F N.
        """
        kept = kept_tokens("frame_merge", self.tokens, shape.tokens)
        clip_frames("frame_merge", shape)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Join and merge.

        Args:
            features: f32 [1, F*N, C].
            shape: The frames.
            **signals: Not needed.

        Returns:
            Means f32 [1, K, C], and the position of the token that each is merged into i32 [1, K],
            ascending.
        """
        kept = kept_tokens("frame_merge", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        frames, tokens, _ = frames_of("frame_merge", features, shape).shape
        places, starts = torch.arange(frames * tokens), range(0, frames * tokens, tokens)
        ones = torch.ones(tokens, 1)
        clips = [(features[0, s : s + tokens], ones, places[s : s + tokens]) for s in starts]
        for counts in levels(frames, tokens, kept):
            pairs = [clips[i : i + 2] for i in range(0, len(clips), 2)]
            clips = [merged(pair, count) for pair, count in zip(pairs, counts, strict=True)]
        ((x, _, at),) = clips
        at, x = in_raster_order(at, x)
        return x.unsqueeze(0), at.to(torch.int32).unsqueeze(0)


def levels(frames: int, tokens: int, kept: int) -> list[list[int]]:
    """Tokens that are left of each clip at each level; the last level has one clip of `kept`.

    Args:
        frames: F, 2 or more.
        tokens: N, of a frame.
        kept: K.
    """
    count, total = (frames - 1).bit_length(), frames * tokens
    counts, left = list[list[int]](), [tokens] * frames
    for level in range(1, count + 1):
        wanted = kept if level == count else round(total * (kept / total) ** (level / count))
        ends = [min(frames, (i + 1) << level) for i in range(-(-frames >> level))]
        parts = [wanted * end // frames for end in ends]
        most = [sum(left[i : i + 2]) for i in range(0, len(left), 2)]
        sizes = [end - start for start, end in zip([0, *parts], parts, strict=False)]
        left = [max(1, min(size, top)) for size, top in zip(sizes, most, strict=True)]
        counts.append(left)
    return counts


def merged(clips: list[Clip], kept: int) -> Clip:
    """Join clips of n tokens in all and merge until `kept` are left, those that stay first.

    As few rounds as it takes, each of which halves the tokens at most.
    """
    x, size, places = (torch.cat(tensors) for tensors in zip(*clips, strict=True))
    while x.shape[0] > kept:
        matching = match_joined(x, x.shape[0] - kept)
        x, size = matching.merge(x, size)
        places = places.index_select(0, matching.remaining)
    return x, size, places
