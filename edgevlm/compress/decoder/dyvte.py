"""Visual exit: from one layer on the language model sees no visual token at all.

By then the content of the picture has moved into the tokens of the question. DyVTE's trained gate
chooses the layer for each prompt; here it is a constant.

Source: DyVTE (arXiv 2411.19628), and the second stage of ToDRE (arXiv 2505.18757). Limits: a
question that needs the picture late loses it.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts
from edgevlm.graphs.pruning import Look

SOURCE = (
    "DyVTE (arXiv 2411.19628), section 3; the same step is the second stage of ToDRE"
    " (arXiv 2505.18757), section 3.3"
)
SUMMARY = "drops all visual tokens from one layer on"
FORMULA = "from layer l on no visual token"
STATIC = "text tokens alone from that layer on"
DIFFERS = (
    "the layer is a constant (originals: chosen for each prompt, by a trained gate or a threshold"
    " of attention)"
)


class Method(DecoderMethod):
    """Keeps no visual token from a layer on.

    Args:
        layer: The layer, counted from 0; None is 7/8 of them, as in ToDRE.
    """

    def __init__(self, *, layer: int | None = None) -> None:
        self.layer = layer

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If the layer is not there.
        """
        layer = max(1, layers * 7 // 8) if self.layer is None else self.layer
        return layer_counts("dyvte", tokens, layers, (layer,), (0,))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose nothing; never called with `kept` above 0."""
        return None, look.visual[:0]
