"""DivPrune: keep the K tokens that are furthest from each other.

    d[i, j] = 1 - cos(i, j)
    first   = the token whose nearest other token is furthest away
    then    = K - 1 times the token whose nearest selected token is furthest away

The loop is unrolled. It carries the distance of each token to its nearest selected token, so a step
reads one row of d: argmax, gather, minimum. The diagonal of d is -1; the minimum therefore marks
a selected token by itself and no mask is carried. Of equals the lowest index is taken: argmax of
PyTorch and of ONNX both promise the first one. All of it is float32; float16 resolves 1 - cos too
badly near 0 and picks flip.

With G groups, token i is in group i mod G, so each spans the whole picture; each keeps K/G of its
N/G, all in the same step. That is K/G steps and N^2/G floats, and no group knows the choices of the
others.

Source: DivPrune (arXiv 2503.02175), vbdi/divprune. Limits: N^2/G floats for d, K/G steps one after
the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.selection import ROUNDING, ascending, keep_all, select_tokens, unit_rows
from edgevlm.graphs.visual_shape import VisualShape

SOURCE = (
    "DivPrune (arXiv 2503.02175), max-min diversity problem, vbdi/divprune@799e2d9"
    " LLaVA/llava/model/llava_arch.py: DivPrune, pairwise_cosine_similarity"
)
SUMMARY = "keeps the K tokens that are furthest from each other (max-min cosine distance)"
FORMULA = "add argmax_y min over kept of (1 - cos(x, y)), K times"
STATIC = "K steps over a row of [N, N], unrolled"
DIFFERS = (
    "same tokens as the original, but for three cases that it leaves to chance: distances below"
    " 4e-6 are zero, a token is never kept twice, a token of zeros has distance 1 to all others."
    " Groups are ours"
)
COMPARED = "end to end"


class Method(TokensMethod):
    """Keeps K tokens by greedy max-min diversity.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        groups: G, groups that choose side by side: less work where N and K are large.

    Raises:
        ValueError: If G is below 1.
    """

    def __init__(self, tokens: int | None = None, *, groups: int = 1) -> None:
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        self.tokens, self.groups = tokens, groups

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N, or G does not divide both K and N.
        """
        kept = kept_tokens("divprune", self.tokens, shape.tokens)
        if kept % self.groups or shape.tokens % self.groups:
            raise PlanError(
                f"divprune: got groups={self.groups}, expected a divisor of {kept} (tokens kept)"
                f" and of {shape.tokens} (tokens there are)"
            )
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Select, then gather in raster order.

        Args:
            features: f32 [1, N, C].
            shape: Not needed.
            **signals: Not needed.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("divprune", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        positions = ascending(select(features, kept, self.groups))
        return select_tokens(features, positions)


def select(features: Tensor, kept: int, groups: int = 1) -> Tensor:
    """Indices i64 [K] of `kept` tokens of features [N, C] or [1, N, C], in selection order.

    O(N^2 C / G) for the distances and O(N K / G) for the loop.
    """
    unit = unit_rows(features.reshape(features.shape[-2:]))
    unit = unit.reshape(-1, groups, unit.shape[1]).transpose(0, 1)  # [G, n, C]
    cosine = torch.matmul(unit, unit.transpose(1, 2))  # [G, n, n]
    # The constant shifts all distances equally, so their order stays.
    distance = ((1.0 - ROUNDING) - cosine).clamp(min=0.0)
    number = torch.arange(unit.shape[1])
    own = number == number.unsqueeze(1)
    # Cosine distance is 2 at most, so 4 is never the nearest.
    nearest = torch.where(own, 4.0, distance).amin(2)  # [G, n]
    distance = torch.where(own, -1.0, distance).flatten(0, 1)
    start = torch.arange(groups) * unit.shape[1]
    picks = [nearest.argmax(1)]
    for _ in range(kept // groups - 1):
        last = picks[-1] if groups == 1 else picks[-1] + start
        to_last = distance.index_select(0, last)
        nearest = to_last if len(picks) == 1 else torch.minimum(nearest, to_last)
        picks.append(nearest.argmax(1))
    return (torch.stack(picks) * groups + torch.arange(groups)).flatten()
