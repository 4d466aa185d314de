"""PyramidDrop: half of the visual tokens leave before each of a few layers.

The score of a visual token is its weight in the last row of the attention of the layer that comes
next, mean over heads. Tokens are numbered anew after each stage.

Source: PyramidDrop (arXiv 2410.17247), Cooperx521/PyramidDrop. Limits: the prompt is one call.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts, parse_numbers
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import largest_indices

SOURCE = (
    "PyramidDrop (arXiv 2410.17247), section 3.2, Cooperx521/PyramidDrop@6444f30"
    " llava/model/modeling_llama_pdrop.py: pdrop_rank_drop"
)
SUMMARY = "drops half of the visual tokens in each of three stages, by the prompt's last token"
FORMULA = "top half of the last row of softmax(QK^T / sqrt D), before each of three layers"
STATIC = "one row of attention and a top-k a stage"
DIFFERS = (
    "same tokens as the original; of equal weights the first stays. Stages are at a quarter, half"
    " and three quarters of the layers, as the original has them for 32"
)
COMPARED = "end to end"


class Method(DecoderMethod):
    """Keeps 1/2, 1/4 and 1/8 of the visual tokens.

    Args:
        layers: Layers, counted from 0, that see fewer, with `+` between them; None is a quarter,
            half and three quarters of them. Each halves what is left of all.
    """

    after, contiguous = False, True

    def __init__(self, *, layers: int | str | None = None) -> None:
        self.layers = None if layers is None else parse_numbers("pyramiddrop", "layers", layers)

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If a layer is not there.
        """
        at = self.layers or tuple(sorted({max(1, layers * stage // 4) for stage in (1, 2, 3)}))
        left = tuple(int(tokens * 0.5**stage) for stage in range(1, len(at) + 1))
        return layer_counts("pyramiddrop", tokens, layers, at, left)

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose by the attention of the prompt's last token.

        Args:
            look: The layer that comes next and its input.
            hidden: The same input.
            kept: k, visual tokens that stay.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        return None, largest_indices(look.last_to_visual(), kept)
