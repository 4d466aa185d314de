"""AIM, the pruning: visual tokens leave the second half of the language model by PageRank.

From the middle layer on, visual tokens leave in stages by their importance, a PageRank over the
layer's attention: d starts even over the prompt, five times d becomes d M, where M is the softmax
of the attention scores at temperature 0.1, and heads are joined as the root of the mean square.

Source: AIM (arXiv 2412.03248), LaVi-Lab/AIM. Limits: attention of the whole prompt to itself, for
each stage.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import largest_indices

SOURCE = (
    "AIM (arXiv 2412.03248), section 3.3, LaVi-Lab/AIM@edc24e9"
    " .../qwen2/modeling_qwen2.py: get_importance"
)
SUMMARY = "drops visual tokens in the second half of the language model, by PageRank"
FORMULA = "d <- d softmax(QK^T / (0.1 sqrt D)), five times; top-k of d"
STATIC = "five products [s] x [s, s] a stage"
DIFFERS = (
    "same importance as the original; tokens leave in four stages (original: some in each layer"
    " from 14 to 21 of 28) and are not in the KV caches from there on (original: a mask hides them)"
)
# Layers (of 28) from which on a part of the visual tokens is left.
STAGES = ((14, 0.75), (16, 0.5), (18, 0.25), (21, 0.0))
TEMPERATURE, STEPS = 0.1, 5


class Method(DecoderMethod):
    """Lets all visual tokens leave between the middle and three quarters of the layers."""

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees."""
        left = {max(1, layers * layer // 28): int(tokens * part) for layer, part in STAGES}
        return layer_counts("aim", tokens, layers, tuple(left), tuple(left.values()))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose by importance.

        Args:
            look: The layer and its input.
            hidden: Its output.
            kept: k, visual tokens that stay.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        prompt = (look.rows <= look.last).float()
        scores = importance(look.scores(look.rows), prompt)
        return None, largest_indices(scores.index_select(0, look.visual), kept)


def importance(scores: Tensor, prompt: Tensor) -> Tensor:
    """PageRank of the tokens of a prompt.

    Args:
        scores: Attention before its softmax, f32 [heads, s, s], -1e4 where a token is masked.
        prompt: 1 for the prompt's tokens, 0 for the padding after them, f32 [s].

    Returns:
        f32 [s].
    """
    weights = (scores / TEMPERATURE).softmax(-1)
    rank = (prompt / prompt.sum()).expand(scores.shape[0], 1, -1)
    for _ in range(STEPS):
        rank = rank @ weights
    return rank[:, 0].square().mean(0).sqrt()
