"""Efficient Video Sampling: the K tokens of a clip that changed most against the frame before.

The first frame stays whole. Each other token has 1 - cosine with the token at the same place of the
frame before; the largest of the whole clip are kept, so a frame in which much moves keeps more than
one in which nothing does, and a frame without change may keep none.

Source: EVS (arXiv 2510.14624) as vLLM and SGLang have it, which compare features behind the
connector, not pixels. Limits: K is N at least; needs all frames at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.changes import after_first, similarity
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import keep_all, largest, marked_indices, select_tokens
from edgevlm.graphs.visual_shape import VisualShape, frames_of

SOURCE = (
    "Efficient Video Sampling (arXiv 2510.14624) as vLLM has it, vllm/multimodal/evs.py:"
    " compute_retention_mask, and after it SGLang, python/sglang/srt/multimodal/evs/evs_core.py"
)
SUMMARY = (
    "Efficient Video Sampling: keeps the first frame of a clip whole, and of all others together"
    " the tokens that changed most against the frame before"
)
FORMULA = "the K - N largest of 1 - cos(x[t, i], x[t-1, i]) over all frames t > 1"
STATIC = "a top-k over (F - 1) N"
DIFFERS = (
    "same tokens as the original; it counts them by a rate (K = the rate of F N, N at least), here"
    " K is given. Cosines above 1 - 4e-6 are equal"
)
COMPARED = "end to end"


class Method(TokensMethod):
    """Keeps the K tokens of a clip that changed most.

    Args:
        tokens: K, number of tokens kept of the clip; None keeps all.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: Of a still picture, or if K is not between N and F N.
        """
        kept = kept_tokens("evs", self.tokens, shape.tokens)
        after_first("evs", shape, kept)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compare neighbouring frames and gather.

        Args:
            features: f32 [1, F*N, C].
            shape: The frames.
            **signals: Not needed.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("evs", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        x = frames_of("evs", features, shape)
        _, tokens, rest = after_first("evs", shape, kept)
        first = torch.arange(tokens)
        if rest == 0:
            return select_tokens(features, first)
        changed = largest(-similarity(x[:-1], x[1:]).flatten(), rest)
        return select_tokens(features, torch.cat([first, marked_indices(changed, rest) + tokens]))
