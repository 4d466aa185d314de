"""What a stream keeps of each frame: K of its N tokens, whatever the scene does.

`Changed` compares a frame with the one before, patch by patch:

    similarity[i] = cos(features[i], previous[i])        K patches of the least similarity are kept

Source: TimeChat-Online (arXiv 2504.17343), section 3.2, differential token drop by features. There
a threshold decides, or a share of the tokens of a whole clip, so that a frame has any number of
tokens; here every frame has K, as a static graph and a bounded cache need. Of patches that changed
alike (a still scene, and the first frame, which has none before it) those are kept that cover the
grid most evenly.

`OfFrame` is a method of site `tokens` over one frame, and the one before where it compares them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.changes import similarity
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.selection import ascending, keep_all, largest_indices, select_tokens
from edgevlm.graphs.visual_shape import VisualShape


class Changed:
    """Keeps the K tokens that differ most from those at their places in the frame before.

    Args:
        tokens: K.
        shape: The grid of a frame.

    Raises:
        PlanError: If K is not between 1 and N.
    """

    def __init__(self, tokens: int, shape: VisualShape) -> None:
        self.tokens = kept_tokens("--stream", tokens, shape.tokens)
        self.order = spread(shape)

    def __call__(self, previous: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Select.

        Args:
            previous: f32 [1, N, C], zeros before the first frame.
            features: f32 [1, N, C].

        Returns:
            Tokens f32 [1, K, C] and their positions i32 [1, K], ascending.
        """
        if self.tokens == features.shape[1]:
            return keep_all(features)
        order = torch.tensor(self.order)
        similar = similarity(previous, features)[0].index_select(0, order)  # [N]
        # Of equals the first is taken: the earliest of the order that covers the grid.
        first = largest_indices(-similar, self.tokens)
        return select_tokens(features, ascending(order.index_select(0, first)))


class OfFrame:
    """A method of site `tokens`, for one frame; a `causal` one takes the frame before too.

    Args:
        method: The method.
        tokens: K.
        shape: The grid of a frame.

    Raises:
        PlanError: If the method cannot keep K tokens of a frame.
    """

    def __init__(self, method: TokensMethod, tokens: int, shape: VisualShape) -> None:
        self.method, self.shape = method, shape
        self.tokens = kept_tokens("--stream", tokens, shape.tokens)
        if not method.causal:
            method.plan(shape)

    def __call__(
        self, previous: Tensor, features: Tensor, *signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reduce.

        Args:
            previous: f32 [1, N, C], zeros before the first frame.
            features: f32 [1, N, C].
            *signals: Those of the method, f32 [1, N] or [1, N, D].

        Returns:
            Tokens f32 [1, K, C] and their positions i32 [1, K], ascending.
        """
        named = dict(zip(self.method.signals, signals, strict=True))
        if self.method.causal:
            return self.method.of_frame(features, previous, self.tokens, **named)
        tokens, positions = self.method(features, shape=self.shape, **named)
        return tokens, positions


def spread(shape: VisualShape) -> tuple[int, ...]:
    """All places of a grid, in an order of which any beginning covers it about evenly.

    The bits of row and column take turns, the lowest first (a Morton code, reversed).
    """
    ((height, width),) = shape.grids
    bits = max(height - 1, width - 1, 1).bit_length()

    def rank(place: int) -> int:
        row, column = divmod(place, width)
        return sum(
            (row >> bit & 1) << 2 * (bits - bit) - 1 | (column >> bit & 1) << 2 * (bits - bit) - 2
            for bit in range(bits)
        )

    return tuple(sorted(range(height * width), key=rank))
