"""SparseVLM: words that attend to the picture choose what stays; part of the rest is recycled.

Raters are chosen once, in what enters the language model: the prompt's words after the picture that
visual tokens are most like (softmax over words of their products, mean over visual tokens), those
above the mean of all. Then, after each of a few layers, with k tokens that stay:

 1. The score of a visual token is the attention of the raters to it, mean over heads and raters;
    the k largest stay.
 2. Of the others the 0.3 with the largest scores (and one more) are clustered by density peaks, one
    cluster for ten of them (and one more), and each cluster's mean is a token too, after the k.

Source: SparseVLM (arXiv 2410.04417), Gumpest/SparseVLMs, version 1.0. Limits: the prompt is one
call; attention of the whole prompt to itself for each stage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts, parse_numbers, stages_of
from edgevlm.errors import PlanError
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import ascending, descending, largest_indices

SOURCE = (
    "SparseVLM (arXiv 2410.04417), section 3, Gumpest/SparseVLMs@26a5f48"
    " llava/model/language_model/score.py, utils.py: cluster_and_merge, modelling_sparse_llama.py"
)
SUMMARY = "keeps what the question's words attend to in stages, and clusters a part of the rest"
FORMULA = "top-k of the raters' attention; the best of the rest to cluster means (DPC-KNN)"
STATIC = "attention of the whole prompt, ranks by counting compares, one product a stage"
DIFFERS = (
    "same raters, scores, tokens and clusters as the original, without its noise between equal"
    " densities; of equal scores the first stays"
)
COMPARED = "end to end"
# The first layers that see fewer, of DEPTH, and what stays of 576 with 192 in the mean.
LAYERS, FRACTIONS = (3, 7, 16), (300 / 576, 200 / 576, 110 / 576)
DEPTH = 32
RECYCLED, TOKENS_PER_CLUSTER = 0.3, 10


class Method(DecoderMethod):
    """Keeps and clusters visual tokens in stages.

    Args:
        tokens: Tokens that stay in each stage, beside the clusters, with `+` between them; None is
            the original's fractions.
        layers: Layers, counted from 0, that see fewer; None is where the original has them. Of
            stages that fall on one layer of a small model the last one counts.
    """

    contiguous = True
    carries = True

    def __init__(self, *, tokens: int | str | None = None, layers: int | str | None = None) -> None:
        self.tokens = None if tokens is None else parse_numbers("sparsevlm", "tokens", tokens)
        self.layers = None if layers is None else parse_numbers("sparsevlm", "layers", layers)

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If a layer is not there, or there are more tokens than before, or none.
        """
        at, whole = self._stages(tokens, layers)
        if min(whole) < 1:
            raise PlanError(f"sparsevlm: got tokens={min(whole)}, expected 1 or more in each stage")
        left, before = [], tokens
        for kept in whole:
            before = kept + (clusters(before - kept)[1] if kept < before else 0)
            left.append(before)
        return layer_counts("sparsevlm", tokens, layers, at, tuple(left))

    def plan_whole(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Of the visual tokens that each layer sees those that are no clusters."""
        counts = [tokens] * layers
        for layer, kept in zip(*self._stages(tokens, layers), strict=True):
            counts[layer:] = [kept] * (layers - layer)
        return tuple(counts)

    def _stages(self, tokens: int, layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The layers that see fewer, and the tokens that stay in each stage, without clusters."""
        stages = stages_of(layers, LAYERS, DEPTH)
        at = self.layers or tuple(stages)
        parts = FRACTIONS if self.layers else [FRACTIONS[stage] for stage in stages.values()]
        return at, self.tokens or tuple(max(1, int(tokens * part)) for part in parts[: len(at)])

    def carry(self, look: Look, *signal: Tensor) -> Tensor:
        """The raters, f32 [s]: 1 for each, else 0.

        Args:
            look: The prompt.
            signal: Nothing.
        """
        return rate(look.tokens()[0], look.hidden[0], look.words)

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Keep and cluster.

        Args:
            look: The layer and its input.
            hidden: Its output, f32 [1, s, C].
            kept: k plus the number of clusters.

        Returns:
            Visual tokens f32 [1, kept, C], and whose rows they take, i64 [kept], ascending.
        """
        raters, whole = look.carried, look.whole
        assert raters is not None
        assert whole is not None
        weights = look.attention(look.rows).mean(0).index_select(1, look.visual)
        # A call that measures has no words, and so no raters.
        scores = (raters.unsqueeze(0) @ weights)[0] / raters.sum().clamp(min=1.0)
        return recycle(hidden.index_select(1, look.visual), scores, whole)


def clusters(dropped: int) -> tuple[int, int]:
    """Of the tokens that leave, how many are clustered, and into how many clusters."""
    count = int(RECYCLED * dropped) + 1
    return count, count // TOKENS_PER_CLUSTER + 1


def rate(visual: Tensor, hidden: Tensor, words: Tensor) -> Tensor:
    """Raters among `words`: f32 [s], 1 for each.

    Args:
        visual: Visual tokens f32 [k, C].
        hidden: All tokens f32 [s, C].
        words: The prompt's words after the picture, bool [s].
    """
    similarity = torch.where(words, visual @ hidden.transpose(0, 1), -1e9).softmax(1).mean(0)
    mean = (similarity * words).sum() / words.sum().clamp(min=1)
    return ((similarity > mean) & words).float()


def recycle(tokens: Tensor, scores: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Keep the tokens with the largest scores and cluster a part of the others.

    Args:
        tokens: f32 [1, n, C].
        scores: f32 [n].
        kept: Tokens that stay as they are.

    Returns:
        f32 [1, kept + clusters, C], the kept tokens by index and then the clusters by descending
        density, and the indices of both (of a cluster its centre), i64, ascending.
    """
    total = scores.shape[0]
    count, groups = clusters(total - kept)
    order = descending(scores)
    stay = largest_indices(scores, kept)
    means, centres = density_peaks(tokens[0].index_select(0, order[kept : kept + count]), groups)
    indices = torch.cat([stay, order[kept : kept + count].index_select(0, centres)])
    return torch.cat([tokens[0].index_select(0, stay), means]).unsqueeze(0), ascending(indices)


def density_peaks(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Cluster tokens [n, C] by density peaks with `groups` nearest neighbours (DPC-KNN).

    Returns:
        Means f32 [groups, C] and the indices of the centres i64 [groups], by descending score.
    """
    square = x.square().sum(1)
    product = x @ x.transpose(0, 1)
    distance = (square.unsqueeze(1) + square - 2 * product).clamp(min=0.0).sqrt()
    distance = distance * (torch.arange(len(x)).unsqueeze(1) != torch.arange(len(x)))
    distance = distance / x.shape[1] ** 0.5
    near = distance.topk(groups, largest=False).values
    density = torch.exp(-near.square().mean(1))
    denser = density.unsqueeze(0) > density.unsqueeze(1)
    apart = torch.where(denser, distance, distance.amax((0, 1))).amin(1)
    centres = descending(apart * density)[:groups]
    group = distance.index_select(0, centres).argmin(0)  # [n]
    own = (torch.arange(len(x)).unsqueeze(1) == centres).float()  # [n, groups]
    group = torch.where(own.sum(1) > 0, own.argmax(1), group)
    members = (torch.arange(groups).unsqueeze(1) == group).float()  # [groups, n]
    return members @ x / (members.sum(1, keepdim=True) + 1e-6), centres
