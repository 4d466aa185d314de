"""MustDrop in the language model: visual tokens that no word of the question attends to leave.

In stages: a visual token stays if the question's words together give it a large part of their
attention to the picture, or if a single word attends to it much; each has a threshold, and the
larger multiple of the two counts. A few tokens stay whatever the words say: those that the
encoder's class token attends to most in its last layer.

Source: MustDrop (arXiv 2411.10803), liuting20/MustDrop. Limits: the prompt is one call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts, parse_numbers
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import SMALLEST_NORM, largest_indices

SOURCE = (
    "MustDrop (arXiv 2411.10803), section 3.3, liuting20/MustDrop@909afa5"
    " llava/model/language_model/modelling_sparse_llama.py: dual_attention_filter;"
    " multimodal_encoder/clip_encoder.py: the key tokens"
)
SUMMARY = "drops the visual tokens that no word of the question attends to, in stages"
FORMULA = (
    "top-k of max(sum of a / sum over the picture / t1, largest a / t2), a the attention of the"
    " question's words; the most attended of the encoder first"
)
STATIC = "attention of the prompt to the picture and a top-k a stage"
DIFFERS = (
    "token counts are fixed and thresholds order (original: what is above one of them stays): the"
    " original's tokens where as many stay. KV caches of layers before a stage keep the tokens that"
    " leave in it or later: blocks run one after another, and which tokens are left in the end is"
    " not known when a block writes its cache (original: caches are cut when the prompt is through)"
)
COMPARED = "end to end"
LAYERS = (3, 7, 11, 15)  # of 32: the first that see fewer


class Method(DecoderMethod):
    """Keeps the visual tokens that the question's words attend to, in stages.

    Args:
        tokens: Tokens left in each stage, with `+` between them; None halves what is left in each,
            down to the protected ones.
        layers: Layers, counted from 0, that see fewer; None is where the original has them.
        share: Threshold of a token's part of the words' attention. The original's are 0.001, 0.0012
            and 0.011 for 192, 128 and 64 of 576 tokens in the mean,
        largest: and 0.001, 0.001 and 0.01: threshold of its largest attention from one word.
        protected: Part of all visual tokens that stays whatever the words attend to; where fewer
            are left, those of it that words attend to.

    Raises:
        ValueError: If a threshold is not above 0, or the part not 0 to below 1.
    """

    contiguous = True
    signals: tuple[str, ...] = ("last_cls_attention",)
    carries = True

    def __init__(
        self, *, tokens: int | str | None = None, layers: int | str | None = None,
        share: float = 0.001, largest: float = 0.001, protected: float = 0.08,
    ) -> None:  # fmt: skip
        for name, value in (("share", share), ("largest", largest)):
            if not value > 0:
                raise ValueError(f"{name} is a threshold of attention, above 0, got {value}")
        if not 0 <= protected < 1:
            raise ValueError(f"protected is a part of the tokens, 0 to below 1, got {protected}")
        self.tokens = None if tokens is None else parse_numbers("mustdrop", "tokens", tokens)
        self.layers = None if layers is None else parse_numbers("mustdrop", "layers", layers)
        self.share, self.largest, self.protected = share, largest, protected
        if not protected:
            self.signals, self.carries = (), False

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If a layer is not there, or there are more tokens than before.
        """
        at = self.layers or tuple(sorted({max(1, layers * layer // 32) for layer in LAYERS}))
        least = max(1, math.ceil(self.protected * tokens))
        left = self.tokens or tuple(max(least, tokens >> stage) for stage in range(1, len(at) + 1))
        return layer_counts("mustdrop", tokens, layers, at, left)

    def carry(self, look: Look, *signal: Tensor) -> Tensor:
        """The protected rows.

        Args:
            look: The prompt.
            signal: Attention of the class token in the encoder's last layer, f32 [n].

        Returns:
            f32 [s], 1 for each, else 0.
        """
        (attention,) = signal
        count = math.ceil(self.protected * attention.shape[0])
        chosen = look.visual.index_select(0, largest_indices(attention, count))
        return (look.rows.unsqueeze(1) == chosen).float().sum(1)

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose by the attention of the question's words, the protected tokens first.

        Args:
            look: The layer and its input.
            hidden: Its output.
            kept: k, visual tokens that stay.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        weights = look.attention(look.rows).mean(0).index_select(1, look.visual)  # [s, n]
        scores = word_attention(weights, look.words, self.share, self.largest)
        if look.carried is not None:  # no share or attention is above 1
            most = 1 / min(self.share, self.largest)
            scores = scores + 2 * most * look.carried.index_select(0, look.visual)
        return None, largest_indices(scores, kept)


def word_attention(
    weights: Tensor, words: Tensor, share: float = 1.0, largest: float = 1.0
) -> Tensor:
    """How much the question's words attend to each visual token, as a multiple of a threshold.

    Args:
        weights: Attention of all tokens to the visual tokens, f32 [s, n].
        words: Which tokens are words of the question, bool [s].
        share: Threshold of the part of all words' attention.
        largest: Threshold of the largest attention from one word.

    Returns:
        The larger multiple of the two, f32 [n].
    """
    from_words = weights * words.unsqueeze(1)
    together = from_words.sum(0)
    parts = together / together.sum().clamp(min=SMALLEST_NORM)  # a call that measures has no words
    return torch.maximum(parts / share, from_words.amax(0) / largest)
