"""VisionDrop, inside the language model: keep what visual tokens attend to, merge the rest.

Before each of a few layers, with d dominant and c contextual tokens of that stage:

 1. The score of a visual token is the attention of all visual tokens to it, mean over heads and
    tokens; the d largest stay.
 2. Targets are every s-th of the others; each other token merges into the target whose key (mean
    over heads) has the largest cosine with its own, and a target becomes itself plus their mean.
    Targets come after the dominant tokens.

Source: VisionDrop (arXiv 2506.22283), Ruixxxx/VisionDrop. Limits: O(k^2) attention for a stage; the
prompt is one call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.dominant import dominant_and_contextual
from edgevlm.compress.shared.layer_counts import layer_counts, parse_numbers, stages_of
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import marked, marked_indices

SOURCE = (
    "VisionDrop (arXiv 2506.22283), section 3, Ruixxxx/VisionDrop@f7a9444"
    " llava/model/modeling_llama_visiondrop.py: stages in the language model"
)
SUMMARY = "keeps the tokens that visual tokens attend to and merges the rest, in stages"
FORMULA = (
    "top-d of the mean row of visual attention; the rest to c strided targets by argmax cos(k, k')"
)
STATIC = "attention of the visual tokens, one product a stage"
DIFFERS = (
    "same tokens as the original, inside the language model; its stage in the encoder is"
    " `visionzip` at site tokens. Of equal weights another one may stay"
)
COMPARED = "end to end"
# The original's stages are 30 + 5, 22 + 4 and 16 + 3 of 48 tokens: contextual ones rounded up.
FRACTIONS, CONTEXTUAL = (35 / 48, 26 / 48, 19 / 48), 5 / 35


class Method(DecoderMethod):
    """Keeps and merges visual tokens in stages.

    Args:
        tokens: Tokens left in each stage, dominant and contextual, with `+` between them; None is
            the original's fractions.
        layers: Layers, counted from 0, that see fewer; None is a quarter, half and three quarters.
        contextual: Fraction of a stage's tokens that are merged ones, rounded up.

    Raises:
        ValueError: If the fraction is not between 0 and 1.
    """

    after, contiguous = False, True

    def __init__(
        self, *, tokens: int | str | None = None, layers: int | str | None = None,
        contextual: float = CONTEXTUAL,
    ) -> None:  # fmt: skip
        if not 0 <= contextual < 1:
            raise ValueError(f"contextual is a share, 0 to below 1, got {contextual}")
        self.tokens = None if tokens is None else parse_numbers("visiondrop", "tokens", tokens)
        self.layers = None if layers is None else parse_numbers("visiondrop", "layers", layers)
        self.contextual = contextual

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If a layer is not there, or there are more tokens than before.
        """
        stages = stages_of(layers, (1, 2, 3), 4)
        at = self.layers or tuple(stages)
        parts = FRACTIONS if self.layers else [FRACTIONS[stage] for stage in stages.values()]
        left = self.tokens or tuple(max(1, int(tokens * part)) for part in parts[: len(at)])
        return layer_counts("visiondrop", tokens, layers, at, left)

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Keep and merge.

        Args:
            look: The layer and its input.
            hidden: The same input, f32 [1, s, C].
            kept: k, visual tokens that stay.

        Returns:
            Visual tokens f32 [1, k, C], and whose rows they take, i64 [k], ascending.
        """
        keys = look.keys().mean(0).index_select(0, look.visual)
        scores = look.attention(look.visual).mean((0, 1)).index_select(0, look.visual)
        merged = contextual_tokens(kept, self.contextual)
        tokens, indices = dominant_and_contextual(
            look.tokens(), scores, keys, kept - merged, merged
        )
        if not 0 < merged < kept:
            return tokens, indices
        stays = marked(scores.topk(kept - merged).indices, scores.shape[0])
        dominant = stays.index_select(0, indices)
        order = marked_indices(dominant, kept - merged), marked_indices(~dominant, merged)
        return tokens.index_select(1, torch.cat(order)), indices


def contextual_tokens(kept: int, part: float) -> int:
    """How many of `kept` tokens are merged ones: the part rounded up."""
    return math.ceil(round(kept * part, 6))
