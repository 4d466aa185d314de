"""DyMU's DToMe: ToMe inside the encoder, with a calibrated number of merges for each layer.

The original merges all pairs above a threshold in each layer, so a simple picture is left with
fewer tokens than a rich one. Its thresholds are calibrated on many pictures so that a given number
merges in the mean. A static graph has a fixed number in each layer: that mean.

Source: DyMU (arXiv 2504.17040), MikeWangWZHL/dymu. Limits: those of `tome` at site `vision`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

from edgevlm.compress.shared.calibration import Calibrated, Subject
from edgevlm.compress.shared.contract import VisionMethod
from edgevlm.compress.shared.layer_counts import parse_numbers
from edgevlm.errors import PlanError
from edgevlm.graphs.matching import bipartite_soft_matching
from edgevlm.graphs.parts import EncoderParts
from edgevlm.graphs.selection import unit_rows

SOURCE = (
    "DyMU (arXiv 2504.17040), section 3, MikeWangWZHL/dymu@c57d75a src/open_clip/tome.py:"
    " bipartite_soft_matching, batch_level_bipartite_soft_matching"
)
SUMMARY = (
    "DyMU with fixed numbers: merges a calibrated number of patches in each layer of the encoder"
    " (edgevlm calibrate dymu), and puts them back at its end"
)
FORMULA = (
    "as tome at site vision; r of a layer = mean over pictures of the pairs above its threshold"
)
STATIC = "as tome at site vision"
DIFFERS = (
    "equals the original for a picture with as many pairs above its thresholds as `merges` says;"
    " that number is fixed here, so a simple picture keeps as many tokens as a rich one (64 drawn"
    " scenes, 98 of 196 patches in the mean: the original leaves 48 to 143). Unmerging is once,"
    " at the encoder's end; the original does it in each layer of the language model and averages"
    " the copies again, which changes none of the embedded model's 1,979 answers at 98"
    " patches and three at 49"
)
COMPARED = "end to end"
BATCH = 128  # views whose pairs are ranked together, as many as in the original


class Method(VisionMethod):
    """Merges a given number of tokens in each layer of the encoder.

    Args:
        merges: Merges in each layer from the first on, with `+` between them: `24+20+8`; the mean
            numbers of a calibration. Later layers merge nothing.

    Raises:
        ValueError: If `merges` has another form.
    """

    proportional = True

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
                    f"dymu: got {merged} merges in layer {layer}, expected at most"
                    f" {left[-1] // 2} of its {left[-1]} patches; leave more patches"
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


def calibrate(subject: Subject, progress: Callable[[str], None], *, patches: int) -> Calibrated:
    """Merges of each layer, so that `patches` of a view are left in the mean.

    1. N - patches merges are spread evenly over the layers.
    2. In each layer the best pairs of a batch of views merge, so many a view in the mean; the next
       best similarity is the layer's threshold. Thresholds are means over batches.
    3. With these thresholds each view merges its own number of pairs; `merges` are their means.

    Args:
        subject: The model and the pictures.
        progress: Called with a line for each step.
        patches: Patches that are left.

    Raises:
        PlanError: If no fewer patches would be left, or more than half would merge in a layer.
    """
    encoder, spec = subject.encoder, subject.encoder.spec
    wanted = even_schedule(spec.patches, patches, spec.layers)
    Method(merges="+".join(map(str, wanted))).plan(spec.patches, spec.layers)
    rows: list[list[float]] = []
    for batch in _batches(subject.views()):
        first = len(rows) * BATCH + 1
        progress(f"dymu: thresholds of views {first} to {first + len(batch) - 1}")
        rows.append(_batch_thresholds(encoder, batch, wanted))
    thresholds = [sum(row) / len(rows) for row in zip(*rows, strict=True)]
    left = []
    for number, view in enumerate(subject.views(), 1):
        progress(f"dymu: merges of view {number}")
        left.append(_patches_left(encoder, view, wanted, thresholds))
    means = [sum(counts) / len(left) for counts in zip(*left, strict=True)]
    ends = [counts[-1] for counts in left]
    return Calibrated(
        {"merges": "+".join(map(str, _whole_merges(spec.patches, means)))},
        {
            "thresholds": thresholds,
            "patches_mean": means[-1],
            "patches_least": min(ends),
            "patches_most": max(ends),
        },
    )


def even_schedule(patches: int, left: int, layers: int) -> tuple[int, ...]:
    """Merges of each layer, as even as whole numbers are; what remains is in the first ones.

    Raises:
        PlanError: If `left` is no number from 1 to `patches` - 1.
    """
    if not isinstance(left, int) or not 1 <= left < patches:
        raise PlanError(
            f"dymu: got patches={left}, expected 1 to {patches - 1}, fewer than the {patches} of a"
            " view"
        )
    each, rest = divmod(patches - left, layers)
    return (*[each + 1] * rest, *[each] * (layers - rest))


def best_cosines(keys: Tensor, class_token: bool) -> Tensor:
    """Cosine of each token of even index to the most similar one of odd index: f32 [a].

    Args:
        keys: f32 [n, E].
        class_token: Token 0 is left out: it never merges.
    """
    unit = unit_rows(keys)
    if len(unit) < 2:
        return unit[:0, 0]
    return (unit[::2] @ unit[1::2].transpose(0, 1)).amax(1)[int(class_token) :]


def batch_merges(best: list[Tensor], merged: int) -> tuple[float, list[int]]:
    """The threshold of a batch of views, and how many pairs of each are above it.

    Args:
        best: Cosines of the pairs of each view, f32 [a] each.
        merged: Pairs that merge, in the mean of the views.

    Returns:
        Similarity of the first pair that does not merge, at least 0; pairs that merge, by view.
    """
    cosines = torch.cat(best)
    view_of = torch.cat([torch.full((len(row),), view) for view, row in enumerate(best)])
    order = cosines.argsort(descending=True, stable=True)
    total = merged * len(best)
    threshold = float(cosines[order[total]]) if total < len(order) else 0.0
    merging = view_of[order[:total]].bincount(minlength=len(best))
    return max(threshold, 0.0), merging.tolist()


class _View:
    """A view between two layers of the encoder: its tokens and the patches that each stands for.

    What does not merge stays `by_index`, as in the original's calibration, or by descending cosine,
    as when it runs; behind a class token the two are one.
    """

    def __init__(self, tokens: Tensor, class_token: bool, by_index: bool) -> None:
        self.tokens, self.class_token, self.by_index = tokens, class_token, by_index
        self.size = torch.ones(tokens.shape[1], 1)

    def attend(self, layer: Any) -> Tensor:
        """The first half of a layer; gives the cosines of its pairs, f32 [a]."""
        query, key, value = layer.project(self.tokens)
        bias = self.size.log().reshape(1, 1, 1, -1)
        self.tokens = layer.attend(self.tokens, query, key, value, bias)
        self.keys = key.reshape(key.shape[1], layer.heads, -1).mean(1)
        return best_cosines(self.keys, self.class_token)

    def feed(self, layer: Any, merged: int) -> None:
        """Merge so many pairs by their keys, and run the second half of the layer."""
        if merged:
            matching = bipartite_soft_matching(self.keys, merged, class_token=self.class_token)
            rows, size = matching.merge(self.tokens[0], self.size)
            if self.by_index:
                stays = len(matching.unmerged)
                order = torch.cat([matching.unmerged.argsort(), torch.arange(stays, len(rows))])
                rows, size = rows[order], size[order]
            self.tokens, self.size = rows.unsqueeze(0), size
        self.tokens = layer.feed(self.tokens)

    @property
    def patches(self) -> int:
        """Patches that are left, without a class token."""
        return self.tokens.shape[1] - self.class_token


def _batches(views: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    iterator = iter(views)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _batch_thresholds(
    encoder: EncoderParts, views: list[Tensor], wanted: tuple[int, ...]
) -> list[float]:
    """Thresholds of a batch of views, layer by layer; the pairs above them merge."""
    class_token = encoder.spec.class_token
    states = [_View(encoder.embedding(view), class_token, by_index=True) for view in views]
    thresholds = []
    for layer, merged in zip(encoder.layers, wanted, strict=True):
        threshold, counts = batch_merges([state.attend(layer) for state in states], merged)
        thresholds.append(threshold)
        for state, count in zip(states, counts, strict=True):
            state.feed(layer, count)
    return thresholds


def _patches_left(
    encoder: EncoderParts, view: Tensor, wanted: tuple[int, ...], thresholds: list[float]
) -> list[int]:
    """Patches of a view that are left after each layer, when all pairs above thresholds merge."""
    state, left = _View(encoder.embedding(view), encoder.spec.class_token, by_index=False), []
    for layer, merged, threshold in zip(encoder.layers, wanted, thresholds, strict=True):
        above = int((state.attend(layer) > threshold).sum())
        state.feed(layer, above if merged else 0)
        left.append(state.patches)
    return left


def _whole_merges(patches: int, means: list[float]) -> list[int]:
    """Merges of each layer: `means` are the patches that are left after it, in the mean."""
    left = [patches]
    for mean in means:
        left.append(max(round(mean), -(-left[-1] // 2)))  # half of them merge at most
    return [before - after for before, after in pairwise(left)]
