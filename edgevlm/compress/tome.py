"""ToMe: merge the tokens that are most alike, until K are left.

One round of bipartite soft matching on n tokens:

 1. Tokens at even places are candidates, tokens at odd places are destinations.
 2. Each candidate finds the destination with the largest cosine.
 3. The r candidates with the largest cosines merge into their destinations; the others stay.

A round is an i64 tensor `target` [n]: the place of the token that each token becomes part of, its
own place if it stays. Row p of the membership matrix is `target == p`, and merging is one matmul.
Rounds repeat on what is left, r at most n / 2, and sizes are carried: a token that stands for five
weighs five in the next mean.

Source: ToMe (arXiv 2210.09461), facebookresearch/ToMe. Limits: O(N^2) for each round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgevlm.compress._primitives import (
    ROUNDING,
    VisualShape,
    ascending,
    keep_all,
    kept_tokens,
    places,
    unit_rows,
)

SITE = "tokens"
SOURCE = (
    "ToMe (arXiv 2210.09461), section 3, facebookresearch/ToMe@af95e4b tome/merge.py:"
    " bipartite_soft_matching, merge_wavg"
)
SUMMARY = "merges the most similar tokens until K are left (bipartite soft matching)"
DIFFERS = (
    "the original merges inside each ViT block and compares attention keys; here it is applied"
    " once, before the language model, on features: the encoder is not faster and attention is not"
    " weighted by size. Rows are in raster order of the destinations. Copies of a token tie and the"
    " first merges first, which the original leaves to rounding"
)

# Below any cosine: a token with this score is the last to merge.
NEVER = -2.0


@dataclass(frozen=True)
class Matching:
    """One round: who becomes part of whom.

    Attributes:
        target: i64 [B, n], place of the token that each token becomes part of.
        remaining: i64 [B, n - r], places of the tokens that are left, one for each output row.
    """

    target: Tensor
    remaining: Tensor

    def members(self) -> Tensor:
        """Membership f32 [B, n - r, n]: 1 where the input token is part of the output row."""
        return (self.remaining.unsqueeze(-1) == self.target.unsqueeze(-2)).float()


class Method:
    """Merges N tokens to K.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        r: Most tokens merged in one round; None is half of those left, the fewest rounds. A small r
            merges only what is most alike, then looks again; each round costs a matmul [n/2, n/2].

    Raises:
        ValueError: If r is below 1.
    """

    signals: tuple[str, ...] = ()

    def __init__(self, tokens: int | None = None, *, r: int | None = None) -> None:
        if r is not None and r < 1:
            raise ValueError(f"r is the most tokens merged in one round, at least 1, got {r}")
        self.tokens = tokens
        self.r = r

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N.
        """
        return kept_tokens("tome", self.tokens, shape.tokens)

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Merge round by round.

        Args:
            features: f32 [1, N, C].
            shape: Not needed.
            **signals: Not needed.

        Returns:
            Size-weighted means f32 [1, K, C], and the position of the token that each is merged
            into i32 [1, K], ascending.
        """
        total = features.shape[1]
        kept = kept_tokens("tome", self.tokens, total)
        if kept == total:
            return keep_all(features)
        x, size = features, torch.ones(1, total, 1)
        positions = torch.arange(total)
        while x.shape[1] > kept:
            most = x.shape[1] - kept
            matching = bipartite_soft_matching(x, most if self.r is None else min(self.r, most))
            matching = Matching(matching.target, ascending(matching.remaining))
            x, size = weighted_mean(matching.members(), x, size)
            positions = positions.index_select(0, matching.remaining[0])
        return x, positions.to(torch.int32).unsqueeze(0)


def bipartite_soft_matching(metric: Tensor, r: int, *, class_token: bool = False) -> Matching:
    """Match even tokens with odd ones and merge the r best pairs.

    Args:
        metric: What is compared, [B, n, D].
        r: Tokens to merge; at most half of them (without the class token) are.
        class_token: Token 0 is a class token, which never merges.

    Returns:
        The matching; its rows are [unmerged even tokens, odd tokens]. Unmerged tokens are ordered
        by descending cosine, with a class token by ascending place.
    """
    batch, total = metric.shape[:2]
    r = min(r, (total - class_token) // 2)
    rows = unit_rows(metric)
    score = torch.matmul(rows[:, ::2], rows[:, 1::2].transpose(1, 2))
    score = score.clamp(max=1.0 - ROUNDING)  # [B, even, odd]
    best, destination = score.amax(-1), 2 * score.argmax(-1) + 1  # [B, even]
    even, odd = torch.arange(0, total, 2), torch.arange(1, total, 2).expand(batch, -1)
    if class_token:
        best = torch.where(even == 0, NEVER, best)
    place = places(best)
    target = torch.cat([torch.where(place < r, destination, even), odd], 1)  # [B, even then odd]
    unmerged = 2 * place.topk(even.shape[0], largest=False).indices[:, r:]
    if class_token:
        unmerged = ascending(unmerged)
    raster = [i // 2 if i % 2 == 0 else even.shape[0] + i // 2 for i in range(total)]
    return Matching(target.index_select(1, torch.tensor(raster)), torch.cat([unmerged, odd], 1))


def weighted_mean(members: Tensor, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the members of each row, weighted by how many tokens each stands for.

    Args:
        members: Membership f32 [B, K, n].
        x: Tokens f32 [B, n, C].
        size: Tokens that each stands for, f32 [B, n, 1].

    Returns:
        Means f32 [B, K, C] and their sizes f32 [B, K, 1].
    """
    merged = torch.matmul(members, size)
    return torch.matmul(members, x * size) / merged, merged
