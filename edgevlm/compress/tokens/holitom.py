"""HoliTom before the language model: what stands still in a window of frames is kept once.

 1. Windows: frames are cut into windows so that as many tokens as possible are redundant. A place
    is static in a window if each of its tokens is like the one in the next frame (cosine above
    `tau`); a window of n frames with m static places saves (n - 1) m tokens. The cut that saves
    most is found by dynamic programming, in the graph: F steps over F x F numbers.
 2. A static place becomes one token, the mean over its window, at its first frame.
 3. All that is left is cut to K in proportion: of each frame its moving tokens with the most
    attention, of each window its static ones by density peaks (DPC-KNN). A static token that is not
    kept goes into the nearest kept one: beta centre + (1 - beta) mean of the others.

The original's other half, inside the language model, is `holitom@decoder`. Together they are
`--tokens K --method holitom@tokens --method holitom@decoder`: K tokens enter the language model,
and K/2 are left after its layer at 9/14.

Source: HoliTom (arXiv 2505.21334), section 3, cokeshao/HoliTom. Limits: F^2 N floats for the
windows, (F N)^2 comparisons for the ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.changes import similarity
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.compress.shared.tiles import largest_of_groups, split_budget
from edgevlm.graphs.clips.density import distances, peaks, taken_up
from edgevlm.graphs.selection import keep_all, select_tokens
from edgevlm.graphs.visual_shape import VisualShape, clip_frames, frames_of

SOURCE = (
    "HoliTom (arXiv 2505.21334), section 3.2, cokeshao/HoliTom@e9b2972 holitom/llava_arch.py:"
    " select_static_windows, get_static_dynamic_features, holitom"
)
SUMMARY = (
    "HoliTom: cuts a clip into windows, keeps what stands still in one once, and cuts the rest to K"
    " by attention and density; goes with holitom@decoder"
)
FORMULA = (
    "windows of the largest sum of (n - 1) m; static: mean over the window, then DPC-KNN; moving:"
    " most attention"
)
STATIC = "the dynamic programme is unrolled over F; counts come from ranks within groups"
DIFFERS = (
    "exactly K tokens: budgets of frames and windows are in proportion to what they have, by the"
    " largest remainders (original: rounded up for moving tokens, to the nearest for static ones,"
    " which is not always as many). If fewer than K are left, static tokens of later frames fill"
    " up. Attention is what a token receives in the layer of the features. Cosines above 1 - 4e-6"
    " are equal, and of equal densities the first is the denser (original: 1e-6 drawn at random is"
    " added, which decides alone where all densities are lower)"
)
COMPARED = "end to end"


class Method(TokensMethod):
    """Keeps K tokens of a clip.

    Args:
        tokens: K, number of tokens kept of the clip; None keeps all.
        tau: Cosine above which a token is like that of the next frame; the original takes 0.8, and
            0.65 for a tenth of the tokens.
        beta: What a kept static token keeps of itself.
        neighbours: Nearest tokens, itself among them, that make the density of a token; no more
            than its window keeps.
    """

    signals = ("cls_attention",)

    def __init__(
        self, tokens: int | None = None, *, tau: float = 0.8, beta: float = 0.6, neighbours: int = 7
    ) -> None:
        self.tokens, self.tau, self.beta, self.neighbours = tokens, tau, beta, neighbours

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: Of a still picture, or if K is not between 1 and F N.
        """
        clip_frames("holitom", shape)
        return kept_tokens("holitom", self.tokens, shape.tokens)

    def __call__(
        self,
        features: Tensor,
        *,
        cls_attention: Tensor,
        shape: VisualShape | None = None,
        **signals: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Cut into windows, merge, and cut to K.

        Args:
            features: f32 [1, F*N, C].
            cls_attention: f32 [1, F*N], what each token receives.
            shape: The frames.
            **signals: Not needed.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("holitom", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        x = frames_of("holitom", features, shape)
        alike = similarity(x[:-1], x[1:]) > self.tau
        mean, static, first = still(x, windows(alike), alike)
        moving = torch.cat(((~static).sum(1), first.sum(1))).float()  # [2F]
        budgets = torch.cat((split_budget(moving, kept), torch.zeros(1, dtype=torch.int64)))
        positions, merged = self.cut(
            x, mean, static, first, cls_attention.reshape(x.shape[:2]), budgets, kept
        )
        return select_tokens(merged.reshape(features.shape), positions)

    def cut(
        self,
        x: Tensor,
        mean: Tensor,
        static: Tensor,
        first: Tensor,
        attention: Tensor,
        budgets: Tensor,
        kept: int,
    ) -> tuple[Tensor, Tensor]:
        """Positions i64 [K], ascending, and all tokens after merging, f32 [F, N, C].

        Args:
            x: Tokens, f32 [F, N, C].
            mean: Means of windows, see `still`.
            static: Which places are static, bool [F, N].
            first: Which of them are at the first frame of their window, bool [F, N].
            attention: f32 [F, N].
            budgets: Moving tokens of each frame, static ones of each window by its first frame, and
                0 for static tokens of later frames: i64 [2 F + 1].
            kept: K, their sum.
        """
        frames, tokens = static.shape
        frame = torch.arange(frames).unsqueeze(1)
        group = torch.where(static, 2 * frames, frame)
        group = torch.where(first, frame + frames, group)
        apart = distances(mean)
        score = torch.where(static, attention - 2.0, attention)  # of those that fill up: last
        centres = budgets[frames : 2 * frames].clamp(min=1)
        density = peaks(apart, first, self.neighbours, most=centres)
        score = torch.where(first, density, score)
        positions = largest_of_groups(score.flatten(), group.flatten(), budgets, kept)
        number = torch.arange(frames * tokens)
        chosen = (positions.unsqueeze(1) == number).sum(0).reshape(frames, tokens) > 0
        centre = chosen & first
        joined = taken_up(mean, apart, centre, first & ~centre, self.beta)
        return positions, torch.where(centre.unsqueeze(2), joined, x)


def windows(alike: Tensor) -> Tensor:
    """First frame of the window of each frame, i64 [F].

    Args:
        alike: Whether a token is like the one at its place in the next frame, bool [F - 1, N].

    Of cuts that save as much, the one with the shorter last windows.
    """
    frames = alike.shape[0] + 1
    changes = _changes(alike)
    same = (changes.unsqueeze(0) - changes.unsqueeze(1)) == 0  # [first, last, N]
    length = torch.arange(frames).unsqueeze(0) - torch.arange(frames).unsqueeze(1)
    saved = same.float().sum(2) * length.clamp(min=0)
    best, begins = [torch.zeros(1)], list[Tensor]()
    for last in range(frames):
        backwards = torch.arange(last, -1, -1)
        total = torch.cat(best[::-1]) + saved[:, last].index_select(0, backwards)
        begins.append(last - total.unsqueeze(0).argmax(1))
        best.append(total.amax(0, keepdim=True))
    starts = [begins[-1]]
    for frame in range(frames - 2, -1, -1):
        starts.append(torch.where(starts[-1] <= frame, starts[-1], begins[frame]))
    return torch.cat(starts[::-1])


def still(x: Tensor, start: Tensor, alike: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means over windows [F, N, C]; which places are static; which of these are at first frames.

    Args:
        x: Tokens, f32 [F, N, C].
        start: First frame of the window of each frame, i64 [F].
        alike: As in `windows`.
    """
    number = torch.arange(x.shape[0])
    together = (start.unsqueeze(1) == start).float()  # [F, F]
    end = (together * number).amax(1).to(torch.int64)
    changes = _changes(alike)
    same = (changes.index_select(0, end) - changes.index_select(0, start)) == 0
    static = same & (end > start).unsqueeze(1)
    mean = (together / together.sum(1, keepdim=True)) @ x.flatten(1)
    return mean.reshape(x.shape), static, static & (start == number).unsqueeze(1)


def _changes(alike: Tensor) -> Tensor:
    """How often each place has changed up to each frame, f32 [F, N]."""
    return torch.cat((torch.zeros(1, alike.shape[1]), (~alike).float().cumsum(0)))
