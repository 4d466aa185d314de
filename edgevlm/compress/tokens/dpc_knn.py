"""Density peaks: of all tokens those that are dense, and far from denser ones.

Tokens of a clip are compared across its frames, so that what stays is kept once. HoT picks frames
of a pose sequence that way; here the points are visual tokens.

Source: the arithmetic of HoT's token pruning cluster (arXiv 2311.12028), NationalGAILab/HoT.
Limits: (F N)^2 floats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.clips.density import distances, peaks
from edgevlm.graphs.selection import keep_all, largest_indices, select_tokens
from edgevlm.graphs.visual_shape import VisualShape

SOURCE = (
    "DPC-KNN as in HoT (arXiv 2311.12028), NationalGAILab/HoT@873b5bd model/mixste/hot_mixste.py:"
    " cluster_dpc_knn, which picks frames of a sequence of poses"
)
SUMMARY = (
    "Density peaks (DPC-KNN, as HoT picks frames): keeps the tokens that have near neighbours and"
    " are far from tokens that have nearer ones, across all frames of a clip"
)
FORMULA = "the K largest of exp(-mean d_knn^2) times the distance to a denser token"
STATIC = "one product, two top-k"
DIFFERS = (
    "the points are visual tokens, not frames of poses; of equal densities the first is the denser"
    " (original: drawn at random); what it learned to recover with is not here"
)
COMPARED = "vectors"


class Method(TokensMethod):
    """Keeps K centres.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        neighbours: Nearest tokens, itself among them, that make the density of a token.

    Raises:
        ValueError: If `neighbours` is below 2.
    """

    def __init__(self, tokens: int | None = None, *, neighbours: int = 5) -> None:
        if neighbours < 2:
            raise ValueError(f"neighbours counts the token itself, at least 2, got {neighbours}")
        self.tokens, self.neighbours = tokens, neighbours

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N.
        """
        return kept_tokens("dpc_knn", self.tokens, shape.tokens)

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Select.

        Args:
            features: f32 [1, N, C].
            shape: Not needed.
            **signals: Not needed.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("dpc_knn", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        there = torch.ones(features.shape[:2]) > 0
        score = peaks(distances(features), there, self.neighbours)
        return select_tokens(features, largest_indices(score[0], kept))
