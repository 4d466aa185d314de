"""k-medoids in segments of a clip: neighbouring frames share K / S tokens, which stand for all.

The clustering is in `graphs/clips/medoids.py`; `centerclip` at site vision has it inside CLIP.

Source: the arithmetic of CenterCLIP (arXiv 2205.00823), section 3, mzhaoshuai/CenterCLIP, which
clusters inside CLIP. Limits: K steps one after the other, so a long graph for a large K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.clips.medoids import medoids
from edgevlm.graphs.selection import keep_all, select_tokens
from edgevlm.graphs.visual_shape import VisualShape

SOURCE = (
    "the clustering of CenterCLIP (arXiv 2205.00823), section 3, mzhaoshuai/CenterCLIP@886fe73"
    " modules/cluster/fast_kmeans.py: batch_fast_kmedoids_with_split, KKZ start"
)
SUMMARY = (
    "k-medoids (CenterCLIP's clustering) before the language model: in each of S segments of a clip"
    " keeps the K / S tokens that are the middles of clusters over its frames"
)
FORMULA = "k-medoids of the tokens of a segment by Euclidean distance, KKZ start"
STATIC = "K steps for the start, then rounds of one product, unrolled"
DIFFERS = (
    "behind the projector (CenterCLIP: inside CLIP, after a block, and its class tokens too);"
    " rounds are a fixed number (original: until nothing moves, at most 100)"
)
COMPARED = "vectors"


class Method(TokensMethod):
    """Keeps K medoids.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        segments: S, runs of frames that are clustered by themselves; a picture is one.
        rounds: Rounds of the clustering.

    Raises:
        ValueError: If `segments` or `rounds` is below 1.
    """

    def __init__(self, tokens: int | None = None, *, segments: int = 1, rounds: int = 8) -> None:
        if min(segments, rounds) < 1:
            raise ValueError(f"segments and rounds are at least 1, got {segments} and {rounds}")
        self.tokens, self.segments, self.rounds = tokens, segments, rounds

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N, or the segments do not divide frames and K.
        """
        kept = kept_tokens("k_medoids", self.tokens, shape.tokens)
        if len(shape.grids) % self.segments or kept % self.segments:
            raise PlanError(
                f"k_medoids: got segments={self.segments}, expected a divisor of"
                f" {len(shape.grids)} (frames or tiles) and of {kept} (tokens kept)"
            )
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cluster each segment and keep its medoids.

        Args:
            features: f32 [1, N, C].
            shape: Not needed.
            **signals: Not needed.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("k_medoids", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        size = features.shape[1] // self.segments
        segments = features.reshape(self.segments, size, -1)
        chosen, _ = medoids(segments, kept // self.segments, self.rounds)
        positions = chosen + torch.arange(self.segments).unsqueeze(1) * size
        return select_tokens(features, positions.flatten())
