"""TempMe in CLIP over frames: tokens merge in frames, then over clips of more and more frames.

    layers of the first two thirds   in each frame `r` patches merge, by keys
    then, a layer for each join      neighbouring clips become one, all class tokens in front;
                                     `across` of its tokens merge by the layer's input, and `inside`
                                     of those that are left by keys
    layers behind                    `inside` of the tokens merge by keys

Tokens of even index (of odd index, where there are an odd number of class tokens) find the most
similar of the others, and the best pairs merge to the mean of all patches that they stand for;
attention to a token gets the logarithm of their number. Class tokens never merge, and the clip's
embedding is the mean of theirs. Of 12 frames of 50 tokens at 12 layers and as published: 12 x 34
behind layer 8, then 6 x 44, 3 x 56, 1 x 107 and 1 x 97.

Source: TempMe (ICLR 2025), LunarShen/TempMe. Limits: encoders whose class token is the embedding;
all frames are in one call, so memory grows with them. A matching for each window of each layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edgevlm.compress.shared.contract import FramesMergingMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.clips.merging import Stage
from edgevlm.graphs.matching import match_joined

SOURCE = (
    "TempMe, LunarShen/TempMe@e624930 tvr/models/module_tome_merge.py: bipartite_soft_matching,"
    " merge_wavg; its numbers of tokens"
)
SUMMARY = (
    "TempMe: inside CLIP over frames similar tokens merge in each frame, then over joined frames"
)
FORMULA = "y = mean of what argmax cos(x_even, x_odd) joins, weighted by size; frames join in steps"
STATIC = "a matching and one product a window of each layer"
DIFFERS = (
    "without what it trains: positions of clips, added where they are joined, and its low-rank"
    " changes of the weights (those that were added to a checkpoint's weights are in them). The"
    " clip's embedding is the mean of its class tokens' at length 1, as of frames alone"
)
COMPARED = "vectors"


@dataclass(frozen=True)
class _Window:
    """A window between two layers: tokens with the class tokens among them."""

    classes: int
    tokens: int

    def merged(self, wanted: int) -> _Window:
        """Behind a merging, which no more than half of the patches can join."""
        patches = self.tokens - self.classes
        most = len(range(self.classes % 2, patches, 2))
        return _Window(self.classes, self.tokens - min(wanted, most))


class Method(FramesMergingMethod):
    """Joins and merges the frames of a clip.

    Args:
        r: Patches that merge in each frame and layer before the first join.
        join: Neighbouring clips that become one in a layer each, with `+` between the numbers; of
            12 frames as published 2+2+3, which empty stands for: prime factors of the frames.
        layer: The layer before which the first join is, counted from 0; -1 is two thirds of them.
        across: Share of a joined clip's tokens that merge before the layer.
        inside: Share of the tokens that merge in each layer from the first join on.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        r: int = 2,
        join: str | int = "",
        layer: int = -1,
        across: float = 0.3,
        inside: float = 0.1,
    ) -> None:
        if r < 0 or layer < -1 or not (0 < across <= 0.5 and 0 <= inside <= 0.5):
            raise ValueError(
                "r must be at least 0, layer at least 0 (or -1), across above 0 and inside at least"
                f" 0, both at most 0.5; got {r}, {layer}, {across:g}, {inside:g}"
            )
        parts = str(join).split("+") if str(join) else []
        if not all(part.isdecimal() and int(part) > 1 for part in parts):
            raise ValueError(f"join must look like 2+2+3, each at least 2, got {join}")
        self.r, self.join, self.layer = r, tuple(map(int, parts)), layer
        self.across, self.inside = across, inside

    def plan_frames(self, frames: int, patches: int, layers: int) -> tuple[tuple[int, int], ...]:
        """Windows, and tokens of each, behind each layer; see `FramesMergingMethod`.

        Raises:
            PlanError: If the joins do not fit the frames or the layers, or nothing is left to
                merge.
        """
        return tuple((s.windows, s.after) for s in self.stages(frames, patches, layers))

    def stages(self, frames: int, patches: int, layers: int) -> tuple[Stage, ...]:
        """The windows of each layer.

        Args:
            frames: Frames of a clip.
            patches: Patches of a frame, the class token left out.
            layers: Layers of the encoder.

        Raises:
            PlanError: As `plan_frames`.
        """
        joins = self.join or factors(frames)
        first = layers * 2 // 3 if self.layer < 0 else self.layer
        windows, found = frames, list[Stage]()
        if first + len(joins) > layers:
            raise PlanError(
                f"tempme: {len(joins)} joins ({'+'.join(map(str, joins))}) from layer {first} on,"
                f" and the encoder has {layers} layers; give fewer joins or a lower layer"
            )
        window = _Window(1, patches + 1)
        for layer in range(layers):
            joined = joins[layer - first] if 0 <= layer - first < len(joins) else 1
            if windows % joined:
                raise PlanError(
                    f"tempme: joins {'+'.join(map(str, joins))} do not divide {frames} frames; give"
                    " numbers whose product does"
                )
            windows //= joined
            before = _Window(window.classes * joined, window.tokens * joined)
            part = self.across * before.tokens if joined > 1 else 0
            inside = before.merged(int(part))
            if joined > 1 and inside == before:
                raise PlanError(
                    f"tempme: across={self.across:g} merges none of the {before.tokens} tokens of a"
                    " joined clip; give a larger share"
                )
            wanted = self.r if layer < first else int(self.inside * inside.tokens)
            window = inside.merged(wanted)
            found.append(
                Stage(joined, windows, before.classes, before.tokens, inside.tokens, window.tokens)
            )
        return tuple(found)

    def __call__(
        self, x: Tensor, metric: Tensor, size: Tensor, removed: int, classes: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge in one window.

        Args:
            x: Tokens f32 [n, D], class tokens first.
            metric: What is compared, f32 [n, E].
            size: Patches that each stands for, f32 [n, 1].
            removed: How many fewer tokens are left.
            classes: Class tokens, which never merge.

        Returns:
            Tokens f32 [n - removed, D], the patches that each stands for f32 [n - removed, 1], and
            the output token that each input token is part of, i64 [n].
        """
        found = match_joined(metric, removed, classes)
        return *found.merge(x, size), found.output_index()


def factors(number: int) -> tuple[int, ...]:
    """Prime factors, ascending."""
    found, least = list[int](), 2
    while number > 1:
        if number % least:
            least += 1
        else:
            found.append(least)
            number //= least
    return tuple(found)
