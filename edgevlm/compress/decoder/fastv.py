"""FastV: after layer k - 1 only the visual tokens stay that the prompt's last token attends to.

The score of a visual token is its weight in the last row of that layer's attention, mean over
heads.

Source: FastV (arXiv 2403.06764), pkunlp-icler/FastV. Limits: the prompt is one call; the last token
of a question need not attend to what an answer needs.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import largest_indices

SOURCE = (
    "FastV (arXiv 2403.06764), section 4, pkunlp-icler/FastV@d165972"
    " src/transformers/.../llama/modeling_llama.py: in-place drop"
)
SUMMARY = "drops the visual tokens that the prompt's last token attends to least, after one layer"
FORMULA = "top-k of the last row of softmax(QK^T / sqrt D) in layer k - 1"
STATIC = "one row of attention and a top-k"
DIFFERS = "same tokens as the original; of equal weights the first stays"
COMPARED = "end to end"


class Method(DecoderMethod):
    """Keeps some visual tokens from layer k on.

    Args:
        tokens: Visual tokens that stay; None is half of them, the original's rate.
        layer: k, counted from 0: the first layer that sees fewer.
    """

    def __init__(self, *, tokens: int | None = None, layer: int = 2) -> None:
        self.tokens, self.layer = tokens, layer

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If the layer is not there, or more should stay than there are.
        """
        left = tokens // 2 if self.tokens is None else self.tokens
        return layer_counts("fastv", tokens, layers, (self.layer,), (left,))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose.

        Args:
            look: The layer and its input.
            hidden: Its output.
            kept: k, visual tokens that stay.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        return None, largest_indices(look.last_to_visual(), kept)
