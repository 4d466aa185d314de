"""VFlowOpt in the language model: the least important visual tokens leave before some layers.

Importance is that of the encoder, as for VFlowOpt before the language model: the mean attention of
the global tokens, those that receive more than t times the attention that a token receives in the
mean. It goes with the rows, so no attention of the language model is needed.

Source: VFlowOpt (arXiv 2508.05211), sihany077/VFlowOpt. Limits: the prompt is one call.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts, parse_numbers
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import largest_indices

SOURCE = (
    "VFlowOpt (arXiv 2508.05211), section 3, sihany077/VFlowOpt@129eeef"
    " src/transformers-4.46.0/.../qwen2/modeling_qwen2.py: forward_illava"
)
SUMMARY = (
    "VFlowOpt's part in the language model: drops the visual tokens that the encoder's global"
    " tokens attend to least"
)
FORMULA = "top-k of the global tokens' attention in the encoder, before some layers"
STATIC = "a top-k a stage"
DIFFERS = (
    "same tokens as the original at the same t, layers and counts; these are options, and `edgevlm"
    " calibrate vflowopt` searches t alone of them (original: ratios too). Importance is without"
    " entropy, whose weight is 0 in all released settings"
)
COMPARED = "end to end"
# The setting released for LLaVA-OneVision 7B at a tenth of the tokens: ratios 1.0 and 0.6 at layers
# 9 and 18 of 28, of which the first keeps all.
LAYER, OF, RATIO = 18, 28, 0.6


class Method(DecoderMethod):
    """Keeps the visual tokens of the largest importance, in stages.

    Args:
        tokens: Tokens left in each stage, with `+` between them; None keeps 0.6 in one.
        layers: Layers, counted from 0, that see fewer; None is one at 18 of 28.
        t: A token of the encoder is global if it receives more than t times the mean attention; 0
            makes all tokens global. The same as that of `vflowopt` at site tokens, if both are.

    Raises:
        ValueError: If t is negative.
    """

    after = False
    signals = ("global_attention",)
    carries = True

    def __init__(
        self, *, tokens: int | str | None = None, layers: int | str | None = None, t: float = 0.0
    ) -> None:
        if not t >= 0:
            raise ValueError(f"t is a multiple of the mean attention, 0 or more, got {t}")
        self.tokens = None if tokens is None else parse_numbers("vflowopt", "tokens", tokens)
        self.layers = None if layers is None else parse_numbers("vflowopt", "layers", layers)
        self.global_times = float(t)

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If a layer is not there, or there are more tokens than before.
        """
        at = self.layers or (max(1, layers * LAYER // OF),)
        left = self.tokens or (tokens - round(tokens * (1 - RATIO)),)
        return layer_counts("vflowopt", tokens, layers, at, left)

    def carry(self, look: Look, *signal: Tensor) -> Tensor:
        """The importance of each row.

        Args:
            look: The prompt.
            signal: Attention of the encoder's global tokens to each visual token, f32 [n].

        Returns:
            f32 [s], 0 for rows of text.
        """
        (attention,) = signal
        return (look.rows.unsqueeze(1) == look.visual).float() @ attention

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose by importance.

        Args:
            look: The layer that comes next and its input.
            hidden: The same input.
            kept: k, visual tokens that stay.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        assert look.carried is not None
        return None, largest_indices(look.carried.index_select(0, look.visual), kept)
