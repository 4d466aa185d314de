"""Bipartite matching: which tokens become part of which others.

 1. Some tokens are candidates, the others are destinations.
 2. Each candidate finds the destination with the largest cosine.
 3. The r candidates with the largest cosines merge into their destinations; the others stay.

Source: ToMe (arXiv 2210.09461), section 3, facebookresearch/ToMe. Limits: O(N^2) cosines a round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgevlm.graphs.selection import ROUNDING, ascending, places, unit_rows

# Below any cosine: a token with this score is the last to merge.
NEVER = -2.0


@dataclass(frozen=True)
class Matching:
    """One round over n tokens: who becomes part of whom.

    Attributes:
        unmerged: i64 [a - r], places of the candidates that stay.
        merged: i64 [r], places of the candidates that merge, the best first.
        into: i64 [r], place of the destination of each.
        destinations: i64 [b], places of all destinations; constant.
        target: i64 [n], place of the token that each token becomes part of; its own if it stays.
    """

    unmerged: Tensor
    merged: Tensor
    into: Tensor
    destinations: Tensor
    target: Tensor

    @property
    def remaining(self) -> Tensor:
        """Places i64 [n - r] of the tokens that are left, in the order of the rows of `merge`."""
        return torch.cat([self.unmerged, self.destinations])

    def merge(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Means of what merged, weighted by how many tokens each stands for.

        Args:
            x: Tokens f32 [n, C].
            size: Tokens that each stands for, f32 [n, 1].

        Returns:
            Rows f32 [n - r, C] and their sizes f32 [n - r, 1]. O(b r C).
        """
        goes = (self.destinations.unsqueeze(1) == self.into).float()  # [b, r]
        heavy = x * size
        total = size.index_select(0, self.destinations) + goes @ size.index_select(0, self.merged)
        there = heavy.index_select(0, self.destinations)
        mean = (there + goes @ heavy.index_select(0, self.merged)) / total
        stay = x.index_select(0, self.unmerged), size.index_select(0, self.unmerged)
        return torch.cat([stay[0], mean]), torch.cat([stay[1], total])

    def rows(self) -> Tensor:
        """Row of `merge` that each token is part of, i64 [n]. O(n (n - r)) compares."""
        left = self.remaining
        found = self.target.unsqueeze(1) == left
        return (found * torch.arange(left.shape[0])).sum(1)


def match(
    metric: Tensor, candidates: list[int], destinations: list[int], r: int, *,
    class_token: bool = False,
) -> Matching:  # fmt: skip
    """Match candidates with destinations and merge the r best pairs.

    Args:
        metric: What is compared, f32 [n, D].
        candidates: Places of candidates, a of them.
        destinations: Places of all other tokens, b of them.
        r: Tokens to merge, at most a.
        class_token: Token 0 is a class token, which never merges.

    Returns:
        The matching; unmerged candidates by descending cosine, with a class token by place. Equal
        cosines merge in the order of their places.
    """
    rows, from_, to = unit_rows(metric), torch.tensor(candidates), torch.tensor(destinations)
    score = rows.index_select(0, from_) @ rows.index_select(0, to).transpose(0, 1)
    score = score.clamp(max=1.0 - ROUNDING)  # [a, b]
    best, nearest = score.amax(1), to.index_select(0, score.argmax(1))
    if class_token:
        best = torch.where(from_ == 0, NEVER, best)
    place = places(best)
    order = place.topk(len(candidates), largest=False).indices
    unmerged = from_.index_select(0, order[r:])
    target = torch.cat([torch.where(place < r, nearest, from_), to])
    found_at = {place: i for i, place in enumerate([*candidates, *destinations])}
    raster = torch.tensor([found_at[place] for place in range(metric.shape[0])])
    return Matching(
        unmerged=ascending(unmerged) if class_token else unmerged,
        merged=from_.index_select(0, order[:r]),
        into=nearest.index_select(0, order[:r]),
        destinations=to,
        target=target.index_select(0, raster),
    )


def bipartite_soft_matching(metric: Tensor, r: int, *, class_token: bool = False) -> Matching:
    """Match tokens at even places with those at odd places.

    Args:
        metric: What is compared, f32 [n, D].
        r: Tokens to merge; at most half of them (without the class token) are.
        class_token: Token 0 is a class token, which never merges.
    """
    total = metric.shape[0]
    even, odd = list(range(0, total, 2)), list(range(1, total, 2))
    return match(metric, even, odd, min(r, (total - class_token) // 2), class_token=class_token)
