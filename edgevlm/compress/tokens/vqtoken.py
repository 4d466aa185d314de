"""VQToken, the clustering: K clusters of all tokens by cosine, a token is the mean of its cluster.

 1. Centres: the longest token, then K - 1 times the token whose nearest centre is furthest away.
 2. A number of rounds: each token joins the centre with the largest cosine; a centre becomes the
    direction of the mean of its unit vectors. An empty cluster keeps its centre. The last round
    does not move the centres.
 3. A kept token is the mean of the features of a cluster, at the position of its representative:
    the token of the cluster that is nearest to the mean.

Clusters are disjoint, so representatives differ. Where there are fewer clusters than K (copies of
tokens leave centres empty) positions are filled up with the tokens that are furthest from the mean
of their cluster, and each of them becomes that mean. All kept tokens are one product Y = W X: W
[K, N] is 1 where a kept token and a token are of one cluster, divided by their number.

Step 1 is unrolled as in DivPrune, three nodes a step: of equals the lowest index, no mask carried.

Source: VQToken (arXiv 2503.16980), Hai-chao-Zhang/VQToken; step 1 is the KKZ start of CenterCLIP
(arXiv 2205.00823), mzhaoshuai/CenterCLIP. Limits: N^2 floats for step 1 and K steps one after the
other, which suits the paper's small K (12 to 32), above 64 the graph is long; a rounding error can
send a token to another cluster and grow over the rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import ROUNDING, keep_all, largest_indices, unit_rows
from edgevlm.graphs.visual_shape import VisualShape

SOURCE = (
    "VQToken (arXiv 2503.16980), section 3, Hai-chao-Zhang/VQToken@019f89f VQToken/cluster.py:"
    " KMeansTorch; start (KKZ) as in CenterCLIP (arXiv 2205.00823), mzhaoshuai/CenterCLIP@886fe73"
    " modules/cluster/fast_kmeans.py"
)
SUMMARY = (
    "VQToken's clustering without its trained attention: clusters all tokens by k-means with cosine"
    " and keeps the K means"
)
FORMULA = "k-means with cosine from K far tokens; y = mean of a cluster"
STATIC = "K steps for the start, then rounds of one product, unrolled"
DIFFERS = (
    "the clustering alone: the original's trained attention over the map of clusters is not here,"
    " so tokens are means of features (original: of unit vectors, the input of that attention). The"
    " start is fixed (original: drawn at random), rounds are a fixed number (original: until the"
    " centres rest, at most 50), K is fixed (the adaptive K of the paper is not here)"
)
COMPARED = "paper's equations"


class Method(TokensMethod):
    """Merges N tokens to the means of K clusters.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        rounds: Rounds of k-means; 1 is the assignment to the first centres.

    Raises:
        ValueError: If `rounds` is below 1.
    """

    def __init__(self, tokens: int | None = None, *, rounds: int = 8) -> None:
        if rounds < 1:
            raise ValueError(f"rounds is the number of k-means rounds, at least 1, got {rounds}")
        self.tokens = tokens
        self.rounds = rounds

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N.
        """
        return kept_tokens("vqtoken", self.tokens, shape.tokens)

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cluster, then average.

        Args:
            features: f32 [1, N, C].
            shape: Not needed.
            **signals: Not needed.

        Returns:
            Means f32 [1, K, C], and the positions of their representatives i32 [1, K], ascending.
        """
        kept = kept_tokens("vqtoken", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        cluster = assign(features[0], kept, self.rounds)
        positions = representatives(features[0], cluster, kept)
        members = (cluster.index_select(0, positions).unsqueeze(1) == cluster).float()  # [K, N]
        weights = members / members.sum(1, keepdim=True)
        return weights @ features, positions.to(torch.int32).unsqueeze(0)


def start(features: Tensor, kept: int) -> Tensor:
    """Indices i64 [K] of the tokens of features [N, C] that are the first centres (KKZ).

    O(N^2 C) for the distances and O(N K) for the loop.
    """
    unit = unit_rows(features)
    # The constant makes copies have distance 0; the diagonal marks a centre by itself.
    distance = ((1.0 - ROUNDING) - unit @ unit.transpose(0, 1)).clamp(min=0.0)
    number = torch.arange(unit.shape[0])
    distance = torch.where(number == number.unsqueeze(1), -1.0, distance)
    picks = [features.square().sum(1).unsqueeze(0).argmax(1)]
    nearest = distance.index_select(0, picks[0])  # [1, N]
    for _ in range(kept - 1):
        if len(picks) > 1:
            nearest = torch.minimum(nearest, distance.index_select(0, picks[-1]))
        picks.append(nearest.argmax(1))
    return torch.cat(picks)


def assign(features: Tensor, kept: int, rounds: int) -> Tensor:
    """Cluster of each token of features [N, C]: i64 [N], 0 to K - 1. O(N K C) a round."""
    unit = unit_rows(features)
    centres = unit.index_select(0, start(features, kept))  # [K, C]
    cluster = nearest_centre(unit, centres)
    for _ in range(rounds - 1):
        members = (torch.arange(kept).unsqueeze(1) == cluster).float()  # [K, N]
        filled = members.sum(1, keepdim=True) > 0
        centres = torch.where(filled, unit_rows(members @ unit), centres)
        cluster = nearest_centre(unit, centres)
    return cluster


def nearest_centre(unit: Tensor, centres: Tensor) -> Tensor:
    """Index i64 [N] of the centre [K, C] with the largest cosine to each unit vector [N, C]."""
    return (unit @ centres.transpose(0, 1)).clamp(max=1.0 - ROUNDING).argmax(1)


def representatives(features: Tensor, cluster: Tensor, kept: int) -> Tensor:
    """Distinct tokens i64 [K], ascending: of each cluster the one nearest to the mean.

    Args:
        features: f32 [N, C].
        cluster: i64 [N], 0 to K - 1.
        kept: K; if fewer clusters have tokens, tokens far from their mean fill up.
    """
    members = torch.arange(kept).unsqueeze(1) == cluster  # [K, N]
    means = members.float() @ features  # a sum has the direction of the mean
    cosine = (unit_rows(means) @ unit_rows(features).transpose(0, 1)).clamp(max=1.0 - ROUNDING)
    # Below any cosine: a token that is not in the cluster.
    own = torch.where(members, cosine, -2.0)
    nearest = own.argmax(1).index_select(0, cluster)  # [N], representative of each token
    total = features.shape[0]
    # Above any distance: representatives come first.
    score = torch.where(nearest == torch.arange(total), 4.0, 1.0 - own.amax(0))
    return largest_indices(score, kept)
