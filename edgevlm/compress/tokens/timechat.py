"""TimeChat-Online's differential token drop: keep what changed against the frame before.

The first frame stays whole. Of each later frame the tokens with the largest cosine to the token at
the same place of the frame before leave, a fixed number a frame. The frame before is taken as it
was, whether its tokens left or not, so a frame needs itself and one other (`of_frame`).

K = N + (F - 1) k keeps k tokens of each later frame. Where F - 1 does not divide K - N, some frames
spread over the clip keep one more.

Source: TimeChat-Online (arXiv 2504.17343), yaolinli/TimeChat-Online. Limits: K is N at least, so a
clip of F frames is cut to 1/F of its tokens at most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.changes import after_first, most_changed, similarity
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import keep_all, marked_indices, select_tokens
from edgevlm.graphs.visual_shape import VisualShape, frames_of

SOURCE = (
    "TimeChat-Online (arXiv 2504.17343), differential token drop, yaolinli/TimeChat-Online@25a1578"
    " eval/qwen2_5_vl/modeling_qwen2_5_vl_DTD.py: token_drop, method 'feature', absolute=False"
)
SUMMARY = (
    "TimeChat-Online's token drop: keeps the first frame of a clip whole and of each other the"
    " tokens that changed most against the frame before"
)
FORMULA = "per frame t > 1 the k least of cos(x[t, i], x[t-1, i])"
STATIC = "a top-k over [F - 1, N]; K = N + (F - 1) k"
DIFFERS = (
    "same tokens as the original's relative mode, a fixed number a frame; its default, a threshold"
    " with as many tokens as it leaves, and its comparison of pixels are not here. Cosines above"
    " 1 - 4e-6 are equal, and of equals the first is kept (original: any)"
)
COMPARED = "end to end"


class Method(TokensMethod):
    """Keeps the K tokens of a clip that changed.

    Args:
        tokens: K, number of tokens kept of the clip; None keeps all.
    """

    causal = True

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: Of a still picture, or if K is not between N and F N.
        """
        kept = kept_tokens("timechat", self.tokens, shape.tokens)
        after_first("timechat", shape, kept)
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
        kept = kept_tokens("timechat", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        x = frames_of("timechat", features, shape)
        frames, tokens, rest = after_first("timechat", shape, kept)
        first = torch.arange(tokens)
        if rest == 0:
            return select_tokens(features, first)
        changed = most_changed(similarity(x[:-1], x[1:]), later_budgets(frames, rest)).flatten()
        return select_tokens(features, torch.cat([first, marked_indices(changed, rest) + tokens]))

    def of_frame(
        self, frame: Tensor, previous: Tensor, kept: int, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same of one frame of a stream; the first stays whole."""
        changed = most_changed(similarity(previous, frame), (kept,))
        return select_tokens(frame, marked_indices(changed[0], kept))


def later_budgets(frames: int, rest: int) -> tuple[int, ...]:
    """`rest` tokens over all frames but the first, as even as can be."""
    later = frames - 1
    return tuple(rest * (i + 1) // later - rest * i // later for i in range(later))
