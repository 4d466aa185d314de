"""StreamingTOM's causal reduction: a fixed number of tokens of each frame, static and dynamic ones.

A token is static if its cosine to the token at its place in the frame before is above a threshold;
in the first frame none is. Of a frame with N tokens, s of them static, and a budget k

    static   floor(k s / N) centres of density-peak clustering stay; each becomes `beta` times
             itself and 1 - `beta` times the mean of the others of its cluster
    dynamic  the rest of the budget: those that receive most attention in the encoder

    density of i = exp(-mean squared distance to its nearest static tokens), distances / sqrt(C)
    score of i   = density * distance to the nearest static token of less density

and the largest scores are centres. (Density-peak clustering takes the nearest of *more* density;
the original's code has it so, and with it its figures.) How many are static is the picture's
matter; the graph is fixed, as k is.

Source: StreamingTOM (arXiv 2510.18269), its causal temporal reduction. Limits: N^2 distances of
each frame; the quantized memory behind the language model is another matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import grid_budgets, kept_tokens
from edgevlm.compress.shared.changes import similarity
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.graphs.clips.density import distances, taken_up
from edgevlm.graphs.selection import keep_all, marked_indices, ranks, select_tokens
from edgevlm.graphs.visual_shape import VisualShape, clip_frames, frames_of, square_shape

SOURCE = (
    "StreamingTOM (arXiv 2510.18269), causal temporal reduction, YIGE24/StreamingTOM@6c66b05"
    " streamingtom/modules/ctr.py as called in tasks/vision.py"
)
SUMMARY = (
    "StreamingTOM's reduction of each frame to as many tokens: clusters those that are as in the"
    " frame before, and keeps those of most attention of the others"
)
FORMULA = "static: floor(k s / N) density peaks, beta x + (1 - beta) mean; others: most attention"
STATIC = "[F, N, N] distances, ranks instead of sorts"
DIFFERS = (
    "same tokens as the original, which adds noise of 1e-6 to densities; here they are scaled by"
    " their sum, so that no noise decides where they underflow. Where F does not divide K some"
    " frames keep one more. Its quantized memory of keys and values is not here"
)
COMPARED = "end to end"

FAR, LAST = 1e9, -1e9


class Method(TokensMethod):
    """Reduces each frame to its part of K tokens.

    Args:
        tokens: K, number of tokens kept of the clip; None keeps all.
        threshold: A token whose cosine to the one before is above this is static.
        neighbours: Static tokens nearest to one, itself too, that make its density.
        beta: Weight of the centre against the rest of its cluster.

    Raises:
        ValueError: If an option is out of its range.
    """

    causal, first_whole = True, False
    signals = ("cls_attention",)

    def __init__(
        self,
        tokens: int | None = None,
        *,
        threshold: float = 0.9,
        neighbours: int = 7,
        beta: float = 0.6,
    ) -> None:
        if not (0 <= threshold < 1 and neighbours >= 1 and 0 <= beta <= 1):
            raise ValueError(
                "threshold must be at least 0 and below 1, neighbours at least 1, beta 0 to 1; got"
                f" {threshold}, {neighbours}, {beta}"
            )
        self.tokens, self.threshold = tokens, threshold
        self.neighbours, self.beta = neighbours, beta

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: Of a still picture, or if K is not between F and F N.
        """
        kept = kept_tokens("streamingtom", self.tokens, shape.tokens)
        clip_frames("streamingtom", shape)
        grid_budgets("streamingtom", shape, kept)
        return kept

    def __call__(
        self, features: Tensor, *, shape: VisualShape | None = None, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reduce all frames side by side.

        Args:
            features: f32 [1, F*N, C].
            shape: The frames.
            **signals: `cls_attention`, f32 [1, F*N].

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("streamingtom", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("streamingtom", features)
        x = frames_of("streamingtom", features, shape)
        before = torch.cat([torch.zeros(1, *x.shape[1:]), x[:-1]])
        attention = signals["cls_attention"].reshape(x.shape[:2])
        return self._reduce(x, before, attention, grid_budgets("streamingtom", shape, kept))

    def of_frame(
        self, frame: Tensor, previous: Tensor, kept: int, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same of one frame of a stream, of the first by zeros; see `TokensMethod`."""
        return self._reduce(frame, previous, signals["cls_attention"], (kept,))

    def _reduce(
        self, x: Tensor, before: Tensor, attention: Tensor, budgets: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Reduce frames [F, N, C], each by the one before it, to `budgets` tokens."""
        frames, tokens, channels = x.shape
        static = similarity(before, x) > self.threshold  # [F, N]
        budget = torch.tensor(budgets, dtype=torch.float32).unsqueeze(1)
        wanted = static_budgets(static.float().sum(1, keepdim=True), budget, tokens)
        distance = distances(x)
        score = peak_scores(distance, static, self.neighbours)
        centre = static & (ranks(score) < wanted)
        merged = taken_up(x, distance, centre, static & ~centre, self.beta)
        dynamic = ~static & (ranks(torch.where(static, LAST, attention)) < budget - wanted)
        positions = marked_indices((centre | dynamic).flatten(), sum(budgets))
        return select_tokens(merged.reshape(1, frames * tokens, channels), positions)


def static_budgets(static: Tensor, budget: Tensor, tokens: int) -> Tensor:
    """Static tokens' part of each budget, integers f32 [F, 1]: floor(k s / N), and what is free.

    Args:
        static: How many tokens are static, integers f32 [F, 1].
        budget: How many are kept, the same; constant.
        tokens: N.
    """
    number = torch.arange(tokens) + 1.0
    share = (number * tokens <= budget * static).float().sum(1, keepdim=True)
    return torch.maximum(share, budget - (tokens - static))


def peak_scores(distance: Tensor, static: Tensor, neighbours: int) -> Tensor:
    """Scores of static tokens f32 [F, N], up to a factor of each frame; of the others -1."""
    number = min(neighbours, static.shape[1] - 1)
    found = static.float().sum(1, keepdim=True)
    near = torch.where(static.unsqueeze(1), distance, FAR).topk(number, largest=False).values
    used = (found - 1.0).clamp(min=1.0, max=float(number))  # of a few tokens, all others
    near = torch.where(torch.arange(number) < used.unsqueeze(2), near, 0.0)
    density = -near.square().sum(2) / used  # its logarithm
    pair = static.unsqueeze(1) & static.unsqueeze(2)
    furthest = torch.where(pair, distance, 0.0).amax((1, 2)).reshape(-1, 1, 1)
    less = pair & (density.unsqueeze(2) > density.unsqueeze(1))
    to_less = torch.where(less, distance, furthest).amin(2)
    share = torch.where(static, density, LAST).softmax(1)
    return torch.where(static, share * to_less, -1.0)
