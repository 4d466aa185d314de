"""Soft merging: after the attention of one encoder layer every token is mixed into a few targets.

Reduction is a matrix: y = W x. Pruning has one 1 in each row of W, merging one in each column; here
each token x_i is mixed into every target j, with a weight that grows with their similarity:

    P_ij = softmax over j of cos(k_i, k_j) / T,    y_j = sum_i P_ij s_i x_i / sum_i P_ij s_i

k are keys (mean over heads), s the patches that a token stands for, and targets are evenly spaced.
The sizes of targets add up to the patches, so attention is proportional, as ToMe's.

Source: ours; the idea of mixing many tokens into many is that of Token Transforming (arXiv
2506.05709), whose weights we could not read. Limits: dense products [k, n]; a T that is too high
makes all targets similar.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import check_fewer_patches
from edgevlm.compress.shared.contract import VisionMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.matching import prepend_class_token
from edgevlm.graphs.selection import unit_rows

SOURCE = "ours, after the idea of Token Transforming (arXiv 2506.05709), a many-to-many matrix"
SUMMARY = (
    "ours: mixes every patch into a few evenly spaced targets after one layer of the encoder, by"
    " similarity"
)
FORMULA = "y = W x, W = the columns of softmax(cos(k, k_targets) / T), normalized"
STATIC = "two products with [k, n]"
DIFFERS = (
    "not the method of the paper, of which we know the abstract: its targets, weights and layers"
    " are others. Ours are evenly spaced targets, keys as the measure, T = 0.05, one layer, and"
    " proportional attention after it. At the encoder's end each patch gets the token with its"
    " largest weight"
)
COMPARED = "text alone"
TEMPERATURE = 0.05


class Method(VisionMethod):
    """Mixes patches into targets after one layer of the encoder.

    Args:
        patches: Patches that are left.
        layer: The layer, counted from 1; None is a third of them.

    Raises:
        ValueError: If a number is below 1.
    """

    proportional = True

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
            raise PlanError(f"soft_merge: got layer={layer}, the encoder has {layers} layers")
        check_fewer_patches("soft_merge", self.patches, patches)
        return (patches,) * (layer - 1) + (self.patches,) * (layers - layer + 1)

    def __call__(
        self, x: Tensor, metric: Tensor, size: Tensor, removed: int, class_token: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mix.

        Args:
            x: Tokens f32 [n, D].
            metric: Keys f32 [n, E], mean over heads.
            size: Patches that each token stands for, f32 [n, 1].
            removed: How many fewer tokens are left.
            class_token: Token 0 stays as it is and nothing is mixed into it.

        Returns:
            Tokens f32 [n - removed, D], their sizes f32 [n - removed, 1], and the output token with
            the largest weight of each input token, i64 [n].
        """
        first = int(class_token)
        total, kept = x.shape[0] - first, x.shape[0] - first - removed
        targets = torch.tensor([i * total // kept for i in range(kept)])
        mixing = mixing_weights(metric[first:], targets)  # [n, k]
        weights = (mixing * size[first:]).transpose(0, 1)  # [k, n]
        sizes = weights.sum(1, keepdim=True)
        merged = weights @ x[first:] / sizes, sizes, mixing.argmax(1)
        return prepend_class_token(x, size, *merged) if class_token else merged


def mixing_weights(keys: Tensor, targets: Tensor) -> Tensor:
    """How much of each token is mixed into each target: f32 [n, k], each row adds up to one.

    Args:
        keys: f32 [n, E].
        targets: Which tokens are targets, i64 [k].
    """
    unit = unit_rows(keys)
    cosine = unit @ unit.index_select(0, targets).transpose(0, 1)
    return (cosine / TEMPERATURE).softmax(1)
