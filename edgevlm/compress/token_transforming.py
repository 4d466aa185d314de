"""Token Transforming: after one encoder layer every token is shared out among a few, softly.

Reduction is a matrix: y = W x. Pruning has one 1 in each row of W, merging one in each column; here
each token x_i gives a share of itself to every target j, the larger the more alike they are:

    P_ij = softmax over j of cos(k_i, k_j) / T,    y_j = sum_i P_ij s_i x_i / sum_i P_ij s_i

k are keys (mean over heads), s the patches that a token stands for, and targets are evenly spaced.

Source: Token Transforming (arXiv 2506.05709). Limits: dense products [k, n]; a T that is too high
makes all targets alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.stages import check_fewer
from edgevlm.errors import PlanError
from edgevlm.graphs.selection import after_first, unit_rows

SOURCE = "Token Transforming (arXiv 2506.05709), many-to-many matrix; from the abstract alone"
SUMMARY = "shares every patch out among a few after one layer of the encoder, by likeness"
FORMULA = "y = W x, W = the columns of softmax(cos(k, k_targets) / T), normalized"
STATIC = "two products with [k, n]"
DIFFERS = (
    "from the abstract, there is no code: that each output is a mixture of many inputs is the"
    " paper's; evenly spaced targets, keys as the measure and T = 0.05 are ours. At the encoder's"
    " end each patch gets the token that it gave most to"
)
TEMPERATURE = 0.05


class EncoderMethod:
    """Shares patches out after one layer of the encoder.

    Args:
        patches: Patches that are left.
        layer: Layer, from 1, in which that happens; None is a third of them.

    Raises:
        ValueError: If a number is below 1.
    """

    between = True

    def __init__(self, *, patches: int, layer: int | None = None) -> None:
        for name, value in (("patches", patches), ("layer", layer)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.patches, self.layer = patches, layer

    def plan(self, patches: int, layers: int) -> tuple[int, ...]:
        """Patches left after each layer.

        Args:
            patches: Patches of a view: N.
            layers: Layers of the encoder.

        Raises:
            PlanError: If there is no such layer, or no fewer patches would be left.
        """
        layer = max(1, layers // 3) if self.layer is None else self.layer
        if layer > layers:
            raise PlanError(
                f"token_transforming: got layer={layer}, the encoder has {layers} layers"
            )
        check_fewer("token_transforming", self.patches, patches)
        return (patches,) * (layer - 1) + (self.patches,) * (layers - layer + 1)

    def __call__(
        self, x: Tensor, metric: Tensor, size: Tensor, removed: int, class_token: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Share out.

        Args:
            x: Tokens f32 [n, D].
            metric: Keys f32 [n, E], mean over heads.
            size: Patches that each token stands for, f32 [n, 1].
            removed: How many fewer tokens are left.
            class_token: Token 0 stays as it is and gets nothing.

        Returns:
            Tokens f32 [n - removed, D], their sizes f32 [n - removed, 1], and the row of each input
            i64 [n].
        """
        first = int(class_token)
        total, kept = x.shape[0] - first, x.shape[0] - first - removed
        targets = torch.tensor([i * total // kept for i in range(kept)])
        shares = share(metric[first:], targets)  # [n, k]
        weights = (shares * size[first:]).transpose(0, 1)  # [k, n]
        sizes = weights.sum(1, keepdim=True)
        rows, place = weights @ x[first:] / sizes, shares.argmax(1)
        return after_first(x, size, rows, sizes, place) if class_token else (rows, sizes, place)


def share(keys: Tensor, targets: Tensor) -> Tensor:
    """How much of each token goes to each target: rows of f32 [n, k] add up to one.

    Args:
        keys: f32 [n, E].
        targets: Which tokens are targets, i64 [k].
    """
    unit = unit_rows(keys)
    alike = unit @ unit.index_select(0, targets).transpose(0, 1)
    return (alike / TEMPERATURE).softmax(1)
