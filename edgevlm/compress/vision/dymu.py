"""DyMU's DToMe: ToMe inside the encoder, with a calibrated number of merges for each layer.

The original merges all pairs above a threshold in each layer; thresholds are calibrated so that
over many pictures r tokens merge in the mean. A static graph has a fixed number: that mean.

Source: DyMU (arXiv 2504.17040), MikeWangWZHL/dymu. Limits: those of `tome` at site `vision`.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.contract import VisionMethod
from edgevlm.compress.shared.layer_counts import parse_numbers
from edgevlm.errors import PlanError
from edgevlm.graphs.matching import bipartite_soft_matching

SOURCE = (
    "DyMU (arXiv 2504.17040), section 3, MikeWangWZHL/dymu@c57d75a src/open_clip/tome.py:"
    " bipartite_soft_matching, repeat_merged_tokens_w_pos_tracking"
)
SUMMARY = "merges patches in each layer of the encoder at calibrated rates, and unmerges at its end"
FORMULA = "as tome at site vision, with r of each layer from its calibration"
STATIC = "as tome at site vision"
DIFFERS = (
    "same tokens as the original where as many pairs are above its threshold; here that number is"
    " fixed for each layer, so a simple picture keeps as many tokens as a rich one. Unmerging is"
    " done once at the encoder's end (original: in each layer of the language model, which computes"
    " with all tokens as well)"
)


class Method(VisionMethod):
    """Merges a given number of tokens in each layer of the encoder.

    Args:
        merges: Merges in each layer from the first on, with `+` between them: `24+20+8`; the mean
            numbers of a calibration. Later layers merge nothing.

    Raises:
        ValueError: If `merges` has another form.
    """

    def __init__(self, *, merges: int | str) -> None:
        self.merges = parse_numbers("dymu", "merges", merges)

    def plan(self, patches: int, layers: int) -> tuple[int, ...]:
        """Patches left after each layer.

        Args:
            patches: Patches of a view: N.
            layers: Layers of the encoder.

        Raises:
            PlanError: If there are more numbers than layers, or a layer would merge more than half.
        """
        if len(self.merges) > layers:
            raise PlanError(
                f"dymu: got merges for {len(self.merges)} layers, the encoder has {layers}"
            )
        left = [patches]
        for layer, merged in enumerate(self.merges, 1):
            if 2 * merged > left[-1]:
                raise PlanError(
                    f"dymu: {merged} of {left[-1]} patches cannot merge in layer {layer}, half of"
                    " them is the most"
                )
            left.append(left[-1] - merged)
        return (*left[1:], *[left[-1]] * (layers - len(self.merges)))

    def __call__(
        self, x: Tensor, metric: Tensor, size: Tensor, removed: int, class_token: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge the `removed` pairs of tokens with the largest cosine of their keys.

        Args:
            x: Tokens f32 [n, D].
            metric: Keys f32 [n, E], mean over heads.
            size: Patches that each token stands for, f32 [n, 1].
            removed: r.
            class_token: Token 0 never merges.

        Returns:
            Tokens f32 [n - r, D], their sizes f32 [n - r, 1], and the output token that each input
            token is part of, i64 [n].
        """
        matching = bipartite_soft_matching(metric, removed, class_token=class_token)
        return *matching.merge(x, size), matching.output_index()
