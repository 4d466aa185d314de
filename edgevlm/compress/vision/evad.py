"""EVAD in the encoder of clips: tokens leave, those of the key frame never do.

The key frame is the middle group of frames, which moves in front. Behind the attention of a few
layers tokens are ranked by the attention that they receive, in the mean of heads and queries, where
queries of the key frame may count more; all tokens of the key frame and the best of the others go
on, a share of all tokens that is fixed for each of these layers. What left is not put back: the
head sees those that stayed.

Source: EVAD (arXiv 2304.08451), section 3.2, MCG-NJU/EVAD. Limits: encoders that attend over all
frames of a clip at once. O(n^2) for each of these layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgevlm.compress.shared.contract import LeavingMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.selection import largest_indices

SOURCE = "EVAD (arXiv 2304.08451), section 3.2, MCG-NJU/EVAD@0efdb7e models/vit_model.py: KTPBlock"
SUMMARY = (
    "EVAD: of a clip the tokens that receive least attention leave inside the encoder, those of the"
    " key frame stay"
)
FORMULA = (
    "key frame and the largest of mean over heads of sum_q w_q A[q, k], w = enhanced for the key"
    " frame's q, else 1; ceil(keep n) tokens go on from each of a few layers"
)
STATIC = "attention [n, n] a head and one top-k in each of the layers"
DIFFERS = (
    "tokens that stay are in ascending order, the original's by score, which no layer sees; the"
    " original's head finds actors in the key frame, here the encoder's own head takes what stayed"
)
COMPARED = "end to end"
QUARTERS = (1, 2, 3)  # of the layers: 3, 6, 9 of 12 and 6, 12, 18 of 24, as its configs have it


class Method(LeavingMethod):
    """Lets a share of the tokens go on from each of a few layers.

    Args:
        keep: Share of all tokens that go on from each of these layers; its configs have 0.7, or
            0.6 with `enhanced` 4.
        layers: Layers, counted from 0, with `+` between them; empty for those at a quarter, a half
            and three quarters of the depth.
        enhanced: How much a query of the key frame counts beside one of other frames.

    Raises:
        ValueError: If a number is out of range, or `layers` are none.
    """

    def __init__(self, *, keep: float = 0.7, layers: str | int = "", enhanced: float = 1.0) -> None:
        if not 0 < keep < 1:
            raise ValueError(f"keep must be above 0 and below 1, got {keep:g}")
        if not 0 < enhanced <= 1e4:
            raise ValueError(f"enhanced must be above 0 and at most 10000, got {enhanced:g}")
        parts = str(layers).split("+") if str(layers) else []
        if not all(part.isdecimal() for part in parts):
            raise ValueError(f"layers must look like 3+6+9, got {layers}")
        self.keep, self.enhanced = keep, enhanced
        self.layers = tuple(sorted({int(part) for part in parts}))

    def plan_clip(self, patches: int, layers: int, groups: int) -> tuple[int, ...]:
        """Tokens left after each layer.

        Args:
            patches: Tokens of a clip: N.
            layers: Layers of the encoder.
            groups: Groups of frames, of as many tokens each.

        Raises:
            PlanError: If there is no such layer, or the key frame alone has more tokens.
        """
        chosen = self.layers or tuple({layers * quarter // 4 for quarter in QUARTERS})
        if max(chosen) >= layers:
            raise PlanError(f"evad: got layer {max(chosen)}, the encoder has 0 to {layers - 1}")
        counts, left, key = [], patches, patches // groups
        for layer in range(layers):
            left = math.ceil(self.keep * left) if layer in chosen else left
            counts.append(left)
        if left < key:
            raise PlanError(
                f"evad: keep={self.keep:g} leaves {left} tokens of {patches}, and the key frame has"
                f" {key}, which all stay; keep more, or in fewer layers"
            )
        return tuple(counts)

    def weigh(self, tokens: int, key: int) -> Tensor:
        """How much the attention of each query counts: f32 [n].

        Args:
            tokens: n; those of the key frame first.
            key: Tokens of the key frame.
        """
        return torch.where(torch.arange(tokens) < key, self.enhanced, 1.0)

    def choose(self, received: Tensor, key: int, kept: int) -> Tensor:
        """The tokens that go on, i64 [kept], ascending; of equals the first.

        Args:
            received: Attention that each token receives, f32 [n]; the key frame's first.
            key: Tokens of the key frame, which all go on.
            kept: Tokens that go on.
        """
        first = torch.arange(key)
        if kept == key:
            return first
        return torch.cat([first, key + largest_indices(received[key:], kept - key)])
