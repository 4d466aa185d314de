"""CenterCLIP in CLIP over frames: behind a layer, the medoids of each segment of a clip stay.

Frames are cut into equal segments; the patches of a segment are clustered by k-medoids, and the
tokens at the clusters' centres go on together, behind the mean of the segment's class tokens. Later
layers see a segment where they saw a frame, and the clip's embedding is the mean of the segments'.

Source: CenterCLIP (arXiv 2205.00823), sections 3.2 and 3.3, mzhaoshuai/CenterCLIP. Limits: encoders
whose class token is the embedding; all frames are in one call, so memory grows with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.contract import JoiningMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.clips.medoids import medoids, take

SOURCE = (
    "CenterCLIP (arXiv 2205.00823), section 3.3, mzhaoshuai/CenterCLIP@886fe73"
    " modules/cluster/fast_kmeans.py: batch_fast_kmedoids_with_split"
)
SUMMARY = "CenterCLIP: inside CLIP over frames the medoids of each segment of a clip go on"
FORMULA = "k-medoids of the patches of each of S segments behind layer b, begun by the furthest"
STATIC = "K steps of the beginning, then `rounds` products [K, M] [M, M] a segment of M patches"
DIFFERS = (
    "a fixed number of rounds, where the original stops once centres move by less than its"
    " threshold, after 100 at most; medoids alone, not the means of clusters"
)
COMPARED = "vectors"


class Method(JoiningMethod):
    """Keeps the medoids of each segment.

    Args:
        patches: Patches that are left of a segment: K.
        segments: Segments of a clip: S.
        layer: The layer behind which they are chosen, from 1.
        rounds: How often patches are assigned to medoids.

    Raises:
        ValueError: If one is below 1.
    """

    def __init__(self, *, patches: int, segments: int, layer: int = 7, rounds: int = 8) -> None:
        given = {"patches": patches, "segments": segments, "layer": layer, "rounds": rounds}
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.patches, self.segments, self.layer, self.rounds = patches, segments, layer, rounds

    def plan_frames(self, frames: int, patches: int, layers: int) -> tuple[tuple[int, int], ...]:
        """Windows, and tokens of each, behind each layer; see `JoiningMethod`.

        Raises:
            PlanError: If frames do not make equal segments, there is no such layer, or a segment
                has fewer patches.
        """
        if frames % self.segments:
            raise PlanError(
                f"centerclip: {frames} frames do not make {self.segments} equal segments; take a"
                " number that divides them"
            )
        if self.layer > layers:
            raise PlanError(f"centerclip: got layer={self.layer}, the encoder has {layers} layers")
        there = frames // self.segments * patches
        if self.patches >= there:
            raise PlanError(
                f"centerclip: got patches={self.patches}, expected less than {there} (those of a"
                f" segment of {frames // self.segments} frames)"
            )
        before, after = (frames, patches + 1), (self.segments, self.patches + 1)
        return (before,) * (self.layer - 1) + (after,) * (layers - self.layer + 1)

    def __call__(self, x: Tensor, windows: int, tokens: int) -> Tensor:
        """Join frames f32 [F, 1 + N, D] into segments [windows, tokens, D], class tokens first."""
        width = x.shape[-1]
        first = x[:, :1].reshape(windows, -1, width).mean(1, keepdim=True)
        patches = x[:, 1:].reshape(windows, -1, width)
        chosen, _ = medoids(patches, tokens - 1, self.rounds)
        return torch.cat([first, take(patches, chosen)], dim=1)
