"""Keep all tokens: the baseline for what reduction costs and saves."""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.selection import keep_all
from edgevlm.graphs.visual_shape import VisualShape

SOURCE = "baseline: the features as they are"
SUMMARY = "keeps all visual tokens"
FORMULA = "y = x"
STATIC = "nothing"
DIFFERS = "equals the original"
COMPARED = "baseline"


class Method(TokensMethod):
    """Keeps all N tokens.

    Args:
        tokens: None, or N itself.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: N.

        Raises:
            PlanError: If another number was asked for.
        """
        return self._kept(shape.tokens)

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the features f32 [1, N, C] as they are, and positions i32 [1, N]."""
        self._kept(features.shape[1])
        return keep_all(features)

    def _kept(self, total: int) -> int:
        if self.tokens not in (None, total):
            raise PlanError(
                f"identity: got tokens={self.tokens}, expected {total}: identity keeps all of them;"
                " choose another method to keep fewer"
            )
        return total
