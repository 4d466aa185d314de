"""CATP, the second stage: the visual tokens to which the prompt's attention turns.

After layer j those tokens stay to which the prompt's last token attends more than it did in layer
j - 1, and which are similar to the question's words.

Source: CATP (AAAI 2026), section 3. Limits: the prompt is one call; layers j - 1 and j are always
in one block.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts
from edgevlm.errors import PlanError
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import largest_indices, unit_rows

SOURCE = "CATP (Contextually Adaptive Token Pruning, AAAI 2026), section 3"
SUMMARY = "keeps the visual tokens that gain attention and are similar to the question's words"
FORMULA = "top-k of max(0, a_j - a_(j-1)) + 0.6 cos(h, mean h of the question)"
STATIC = "two rows of attention and a top-k"
DIFFERS = (
    "from the paper alone, its code is not public: ranks the one picture of a prompt as the paper"
    " ranks the pictures of its examples; that the question's own picture is pruned against theirs"
    " is left out"
)
COMPARED = "paper's equations"
SIMILARITY = 0.6  # weight of the cosine


class Method(DecoderMethod):
    """Keeps some visual tokens from layer j + 1 on.

    Args:
        tokens: Visual tokens that stay; None is half of them.
        layer: j + 1, counted from 0: the first layer that sees fewer. None is 7 of 32.
    """

    looks_back = True

    def __init__(self, *, tokens: int | None = None, layer: int | None = None) -> None:
        self.tokens, self.layer = tokens, layer

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If the layer or the one two before it is not there, or more should stay than
                there are.
        """
        left = tokens // 2 if self.tokens is None else self.tokens
        layer = max(2, layers * 7 // 32) if self.layer is None else self.layer
        if layer == 1:
            raise PlanError("catp: got layer 1, expected 2 or more: it looks at the two before")
        return layer_counts("catp", tokens, layers, (layer,), (left,))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose by gained attention and similarity to the question.

        Args:
            look: The layer and its input, with those of the layer before.
            hidden: The layer's output, f32 [1, s, C].
            kept: k, visual tokens that stay.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        assert look.before is not None, "a block begins with the second of the two layers"
        gained = (look.last_to_visual() - look.before.last_to_visual()).clamp(min=0.0)
        mean = look.words.float().unsqueeze(0) @ hidden[0]  # the sum: a cosine has no length
        visual = unit_rows(hidden[0].index_select(0, look.visual))
        return None, largest_indices(gained + SIMILARITY * (visual @ unit_rows(mean)[0]), kept)
