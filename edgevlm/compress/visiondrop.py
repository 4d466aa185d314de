"""VisionDrop, inside the language model: by what visual tokens attend to, and the rest merged.

Before each of a few layers, with d dominant and c contextual tokens of that stage:

 1. The score of a visual token is the attention of all visual tokens to it, mean over heads and
    tokens; the d largest stay.
 2. Targets are every s-th of the others; each other token goes to the target whose key (mean over
    heads) has the largest cosine with its own, and a target becomes itself plus their mean.

Source: VisionDrop (arXiv 2506.22283), Ruixxxx/VisionDrop. Limits: O(k^2) attention for a stage; the
prompt is one call.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.stages import numbers, stages
from edgevlm.compress.visionzip import reduce_grid
from edgevlm.graphs.pruning import Look

SOURCE = (
    "VisionDrop (arXiv 2506.22283), section 3, Ruixxxx/VisionDrop@f7a9444"
    " llava/model/modeling_llama_visiondrop.py: stages in the language model"
)
SUMMARY = "keeps what visual tokens attend to and merges the rest, in stages of the language model"
FORMULA = (
    "top-d of the mean row of visual attention; the rest to c strided targets by argmax cos(k, k')"
)
STATIC = "visual rows of attention, one product a stage"
DIFFERS = (
    "same tokens as the original, a merged one at its target's row (original: after the dominant"
    " ones); the share of merged tokens is one for all stages; its stage in the encoder is"
    " `visionzip` at site tokens"
)
# The original's stages are 30 + 5, 22 + 4 and 16 + 3 of 48 tokens.
SHARES, CONTEXTUAL = (35 / 48, 26 / 48, 19 / 48), 5 / 35


class DecoderMethod:
    """Keeps and merges visual tokens in stages.

    Args:
        tokens: Tokens left in each stage, dominant and contextual, with `+` between them; None is
            the original's shares.
        layers: Layers, counted from 0, that see fewer; None is a quarter, half and three quarters.
        contextual: Share of a stage's tokens that are merged ones.

    Raises:
        ValueError: If the share is not between 0 and 1.
    """

    after, contiguous = False, True

    def __init__(
        self, *, tokens: int | str | None = None, layers: int | str | None = None,
        contextual: float = CONTEXTUAL,
    ) -> None:  # fmt: skip
        if not 0 <= contextual < 1:
            raise ValueError(f"contextual is a share, 0 to below 1, got {contextual}")
        self.tokens = None if tokens is None else numbers("visiondrop", "tokens", tokens)
        self.layers = None if layers is None else numbers("visiondrop", "layers", layers)
        self.contextual = contextual

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If a layer is not there, or there are more tokens than before.
        """
        at = self.layers or tuple(sorted({max(1, layers * stage // 4) for stage in (1, 2, 3)}))
        left = self.tokens or tuple(max(1, int(tokens * share)) for share in SHARES[: len(at)])
        if len(left) != len(at):
            left = (*left, *[left[-1]] * len(at))[: len(at)]
        return stages("visiondrop", tokens, layers, at, left)

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Keep and merge.

        Args:
            look: The layer and its input.
            hidden: The rows, f32 [1, s, C].
            kept: k.

        Returns:
            Visual tokens f32 [1, k, C], and which they are, i64 [k], ascending.
        """
        keys = look.keys().mean(0).index_select(0, look.visual)
        scores = look.attention(look.visual).mean((0, 1)).index_select(0, look.visual)
        merged = int(kept * self.contextual)
        return reduce_grid(look.tokens(), scores, keys, kept - merged, merged)
