"""Visual exit: from one layer on the language model sees no visual token at all.

By then the content of the picture has moved into the tokens of the text. VTW (visual tokens
withdrawal) searches the layer once for a model; DyVTE's trained gate chooses it for each prompt, as
does ToDRE's second stage by a threshold of attention. Here it is a constant, as in VTW.

Source: VTW (arXiv 2405.05803), lzhxmu/VTW. Limits: a question that needs the picture late loses it.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts
from edgevlm.graphs.pruning import Look

SOURCE = (
    "VTW (arXiv 2405.05803), section 3, lzhxmu/VTW; the same step is DyVTE's (arXiv 2411.19628) and"
    " the second stage of ToDRE (arXiv 2505.18757), where it depends on the prompt"
)
SUMMARY = "drops all visual tokens from one layer on"
FORMULA = "from layer l on no visual token"
STATIC = "text tokens alone from that layer on"
DIFFERS = (
    "as VTW, positions kept; the layer is an option and its default that of ToDRE, 7/8 of the"
    " layers (VTW: searched for each model, 15 of 32 for LLaVA-1.5). No gate, as DyVTE has it, and"
    " no threshold, as ToDRE has it: a graph has no branch"
)
COMPARED = "end to end"


class Method(DecoderMethod):
    """Keeps no visual token from a layer on.

    Args:
        layer: The layer, counted from 0; None is 7/8 of them.
    """

    def __init__(self, *, layer: int | None = None) -> None:
        self.layer = layer

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If the layer is not there.
        """
        layer = max(1, layers * 7 // 8) if self.layer is None else self.layer
        return layer_counts("exit", tokens, layers, (layer,), (0,))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose nothing; never called with `kept` above 0."""
        return None, look.visual[:0]
