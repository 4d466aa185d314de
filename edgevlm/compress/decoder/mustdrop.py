"""MustDrop in the language model: visual tokens that no word of the question attends to leave.

In stages: a visual token stays if the question's words together give it a large part of their
attention to the picture, or if a single word attends to it much. Both thresholds of the original
are equal, so tokens stay in the order of the larger of the two.

Source: MustDrop (arXiv 2411.10803), liuting20/MustDrop. Limits: the prompt is one call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts, parse_numbers
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import largest_indices

SOURCE = "MustDrop (arXiv 2411.10803), section 3.3, liuting20/MustDrop@909afa5"
SUMMARY = "drops the visual tokens that no word of the question attends to, in stages"
FORMULA = (
    "top-k of max(sum of a / sum over the picture, largest a), a the attention of the question's"
    " words"
)
STATIC = "attention of the prompt to the picture and a top-k a stage"
DIFFERS = (
    "from the paper: token counts are fixed (original: thresholds), tokens of large class attention"
    " are not protected, and KV caches of earlier layers keep the tokens that left later"
)
LAYERS = (2, 6, 10, 14)  # of 32: those in which tokens leave


class Method(DecoderMethod):
    """Keeps the visual tokens that the question's words attend to, in stages.

    Args:
        tokens: Tokens left in each stage, with `+` between them; None halves what is left in each.
        layers: Layers, counted from 0, that see fewer; None is where the original has them.
    """

    contiguous = True

    def __init__(self, *, tokens: int | str | None = None, layers: int | str | None = None) -> None:
        self.tokens = None if tokens is None else parse_numbers("mustdrop", "tokens", tokens)
        self.layers = None if layers is None else parse_numbers("mustdrop", "layers", layers)

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If a layer is not there, or there are more tokens than before.
        """
        at = self.layers or tuple(sorted({max(1, layers * layer // 32) for layer in LAYERS}))
        left = self.tokens or tuple(max(1, tokens >> stage) for stage in range(1, len(at) + 1))
        return layer_counts("mustdrop", tokens, layers, at, left)

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose by the attention of the question's words.

        Args:
            look: The layer and its input.
            hidden: Its output.
            kept: k, visual tokens that stay.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        weights = look.attention(look.rows).mean(0)  # [s, s]
        scores = word_attention(weights.index_select(1, look.visual), look.words)
        return None, largest_indices(scores, kept)


def word_attention(weights: Tensor, words: Tensor) -> Tensor:
    """How much the question's words attend to each visual token: f32 [k].

    Args:
        weights: Attention of all tokens to the visual tokens, f32 [s, k].
        words: Which tokens are words of the question, bool [s].
    """
    from_words = weights * words.unsqueeze(1)
    together = from_words.sum(0)
    return torch.maximum(together / together.sum(), from_words.amax(0))
