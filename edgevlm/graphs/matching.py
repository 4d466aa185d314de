"""Merging by bipartite matching: which tokens become part of which others.

 1. Some tokens are candidates, the others are destinations.
 2. Each candidate finds the destination with the largest cosine.
 3. The r candidates with the largest cosines merge into their destinations; the others stay.

Source: ToMe (arXiv 2210.09461), section 3, facebookresearch/ToMe. Limits: O(N^2) cosines a round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgevlm.graphs.selection import ROUNDING, ascending, ranks, unit_rows

# Below any cosine: a token with this score is the last to merge.
NEVER = -2.0


@dataclass(frozen=True)
class Matching:
    """One round over n tokens: which token becomes part of which.

    Attributes:
        unmerged: i64 [a - r], indices of the candidates that stay.
        merged: i64 [r], indices of the candidates that merge, the largest cosine first.
        into: i64 [r], index of the destination of each.
        destinations: i64 [b], indices of all destinations; constant.
        target: i64 [n], index of the token that each token becomes part of; its own if it stays.
    """

    unmerged: Tensor
    merged: Tensor
    into: Tensor
    destinations: Tensor
    target: Tensor

    @property
    def remaining(self) -> Tensor:
        """Indices i64 [n - r] of the tokens that are left, in the order of `merge`."""
        return torch.cat([self.unmerged, self.destinations])

    def merge(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the tokens that merge, weighted by how many tokens each stands for.

        Args:
            x: Tokens f32 [n, C].
            size: Tokens that each stands for, f32 [n, 1].

        Returns:
            Tokens f32 [n - r, C] and their sizes f32 [n - r, 1]. O(b r C).
        """
        joins = (self.destinations.unsqueeze(1) == self.into).float()  # [b, r]
        weighted = x * size
        total = size.index_select(0, self.destinations) + joins @ size.index_select(0, self.merged)
        own = weighted.index_select(0, self.destinations)
        mean = (own + joins @ weighted.index_select(0, self.merged)) / total
        x_left, size_left = x.index_select(0, self.unmerged), size.index_select(0, self.unmerged)
        return torch.cat([x_left, mean]), torch.cat([size_left, total])

    def output_index(self) -> Tensor:
        """Output token of `merge` that each token is part of, i64 [n]. O(n (n - r)) compares."""
        left = self.remaining
        is_target = self.target.unsqueeze(1) == left
        return (is_target * torch.arange(left.shape[0])).sum(1)


def match(
    metric: Tensor, candidates: list[int], destinations: list[int], r: int, *,
    class_token: bool = False,
) -> Matching:  # fmt: skip
    """Match candidates with destinations and merge the r best pairs.

    Args:
        metric: What is compared, f32 [n, D].
        candidates: Indices of candidates, a of them.
        destinations: Indices of all other tokens, b of them.
        r: Tokens to merge, at most a.
        class_token: Token 0 is a class token, which never merges.

    Returns:
        The matching; unmerged candidates by descending cosine, with a class token by index. Equal
        cosines merge in the order of their indices.
    """
    unit, from_, to = unit_rows(metric), torch.tensor(candidates), torch.tensor(destinations)
    cosine = unit.index_select(0, from_) @ unit.index_select(0, to).transpose(0, 1)
    cosine = cosine.clamp(max=1.0 - ROUNDING)  # [a, b]
    best, nearest = cosine.amax(1), to.index_select(0, cosine.argmax(1))
    if class_token:
        best = torch.where(from_ == 0, NEVER, best)
    rank = ranks(best)
    order = rank.topk(len(candidates), largest=False).indices
    unmerged = from_.index_select(0, order[r:])
    target = torch.cat([torch.where(rank < r, nearest, from_), to])
    row_of = {index: row for row, index in enumerate([*candidates, *destinations])}
    raster = torch.tensor([row_of[index] for index in range(metric.shape[0])])
    return Matching(
        unmerged=ascending(unmerged) if class_token else unmerged,
        merged=from_.index_select(0, order[:r]),
        into=nearest.index_select(0, order[:r]),
        destinations=to,
        target=target.index_select(0, raster),
    )


def bipartite_soft_matching(metric: Tensor, r: int, *, class_token: bool = False) -> Matching:
    """Match tokens of even index with those of odd index.

    Args:
        metric: What is compared, f32 [n, D].
        r: Tokens to merge; at most half of them (without the class token) are.
        class_token: Token 0 is a class token, which never merges.
    """
    total = metric.shape[0]
    even, odd = list(range(0, total, 2)), list(range(1, total, 2))
    return match(metric, even, odd, min(r, (total - class_token) // 2), class_token=class_token)


def prepend_class_token(
    x: Tensor, size: Tensor, merged: Tensor, merged_size: Tensor, row: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The result of merging all tokens but the class token, with the class token before it.

    Args:
        x: Tokens before the merging, f32 [n, D]; the class token is the first.
        size: Patches that each stands for, f32 [n, 1].
        merged: Tokens after the merging, f32 [k, D].
        merged_size: Patches that each stands for, f32 [k, 1].
        row: Which of `merged` each token but the class token is part of, i64 [n - 1].

    Returns:
        Tokens f32 [k + 1, D], their sizes f32 [k + 1, 1], and which of them each token is part of,
        i64 [n].
    """
    first = torch.zeros(1, dtype=torch.int64)
    return (
        torch.cat([x[:1], merged]),
        torch.cat([size[:1], merged_size]),
        torch.cat([first, row + 1]),
    )


def match_joined(metric: Tensor, r: int, class_tokens: int = 0) -> Matching:
    """Match the tokens of frames that were joined: those of even index with those of odd index.

    As TempMe has it: the class tokens of all frames come first and never merge, and tokens that
    stay are in order of their indices.

    Args:
        metric: What is compared, f32 [n, D].
        r: Tokens to merge; at most all of even index behind the class tokens.
        class_tokens: How many of the first tokens are class tokens.
    """
    total, first = metric.shape[0], class_tokens
    even = list(range(first % 2, total - first, 2))
    odd = list(range(1 - first % 2, total - first, 2))
    found = match(metric[first:], even, odd, min(r, len(even)))
    # Where all of even index merge, nothing is left to be put in order.
    unmerged = ascending(found.unmerged) if r < len(even) else found.unmerged
    if not first:
        return replace(found, unmerged=unmerged)
    classes = torch.arange(first)
    return Matching(
        unmerged=torch.cat([classes, unmerged + first]),
        merged=found.merged + first,
        into=found.into + first,
        destinations=found.destinations + first,
        target=torch.cat([classes, found.target + first]),
    )
