"""VFlowOpt before the language model: keep what global tokens attend to, recycle the rest by cell.

Importance of a token is the mean attention of the global tokens to it, plus alpha times the softmax
over its view of the entropies of patches. A token is global if it receives more than t times the
attention that a token receives in the mean. Over all grids together, G cells of a x a tokens in
all, where a picture has tiles:

 1. The K - g most important tokens are kept; g is the number of cells where others are left.
 2. The others of a cell become their mean, weighted by importance, at the most important of them.

A single view or a clip keeps its K most important tokens, unless `cell` is given. All kept tokens
are one product Y = W X with W [K, N]. Where step 1 empties a cell, the next most important token
takes its place, with the mean of its own cell.

t, alpha and a belong to a checkpoint; `edgevlm calibrate vflowopt` finds them. Where no token is
global the one that receives most is.

Source: VFlowOpt (arXiv 2508.05211), sihany077/VFlowOpt. Limits: the encoder computes all N x N
weights of one layer; O(N K) products. A search on few pictures follows chance: on the embedded
model 24 gave alpha=-0.8 and four points less than a hundred, which gave t=1.356 and alpha=0.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edgevlm.compress.shared.budgets import kept_tokens
from edgevlm.compress.shared.calibration import Calibrated, Picture, Subject
from edgevlm.compress.shared.contract import TokensMethod
from edgevlm.errors import PlanError
from edgevlm.graphs.ops import attention_scores
from edgevlm.graphs.selection import (
    SMALLEST_NORM,
    keep_all,
    largest_indices,
    marked_indices,
    ranks,
    select_tokens,
)
from edgevlm.graphs.signals import encode, global_rows, observe, pack
from edgevlm.graphs.visual_shape import VisualShape, check_shape, square_shape
from edgevlm.recipe import OptionValue

SOURCE = (
    "VFlowOpt (arXiv 2508.05211), section 3, sihany077/VFlowOpt@129eeef"
    " .../language_model/llava_qwen_training_free.py and .../multimodal_encoder/siglip_encoder.py"
)
SUMMARY = (
    "VFlowOpt's part before the language model: keeps the tokens that global tokens attend to and,"
    " of a tiled picture, recycles the rest as one token a cell"
)
FORMULA = (
    "top of the global tokens' attention + alpha softmax(entropy); the rest of a cell to its"
    " weighted mean"
)
STATIC = "one product [K, N]"
DIFFERS = (
    "same tokens as the original at the same number of tokens, in raster order; that number is K"
    " (original: it varies with the number of cells that have tokens). Where no token receives t"
    " times the mean, the one that receives most is global (original: the mean of nothing, no"
    " number), so t has to fit the tower: the default t=0 makes all tokens global, and `edgevlm"
    " calibrate vflowopt` searches t, alpha and cell (original: a search for each model, which"
    " released 39.3, 0 and 17.4 for LLaVA-OneVision 7B at a tenth of the tokens). Entropy is that"
    " of the 8-bit picture (original: of normalized pixels times 255, cast to 8 bits; its weight is"
    " 0 in all released settings). A family with a grid for each tile has cells in each tile"
    " (original: one grid over all tiles). The original's second part, inside the language model,"
    " is `vflowopt` at site decoder"
)
COMPARED = "end to end"

# Side of a cell of a tiled picture: the setting released for LLaVA-OneVision 7B.
CELL = 17.4
# What a search draws sides of cells from, as the original's does.
CELLS = (3.0, 24.0)


class Method(TokensMethod):
    """Keeps or recycles N tokens to K.

    Args:
        tokens: K, number of tokens kept; None keeps all.
        t: A token is global if it receives more than t times the mean attention; 0 makes all
            tokens global.
        alpha: Weight of the patches' entropy, -1 to 1.
        cell: a, side of a cell in tokens; a fraction makes cells of uneven sides. None is 17.4 for
            a picture with tiles, and no recycling for a single view or a clip.

    Raises:
        ValueError: If t is negative, alpha is not between -1 and 1, or `cell` is below 1.
    """

    signals: tuple[str, ...] = ("global_attention",)

    def __init__(
        self,
        tokens: int | None = None,
        *,
        t: float = 0.0,
        alpha: float = 0.0,
        cell: float | None = None,
    ) -> None:
        if not t >= 0:
            raise ValueError(f"t is a multiple of the mean attention, 0 or more, got {t}")
        if not -1 <= alpha <= 1:
            raise ValueError(f"alpha is the weight of the entropy, -1 to 1, got {alpha}")
        if cell is not None and not cell >= 1:
            raise ValueError(f"cell is the side of a cell in tokens, at least 1, got {cell}")
        self.tokens, self.alpha, self.cell = tokens, float(alpha), cell
        self.global_times = float(t)
        if alpha:
            self.signals = ("patch_entropy", "global_attention")

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If K is not between 1 and N, or less than the cells.
        """
        kept, cell = kept_tokens("vflowopt", self.tokens, shape.tokens), self._cell(shape)
        cells = 1 if cell is None else 1 + max(cells_of(shape, cell))
        if kept < min(cells, shape.tokens):
            raise PlanError(
                f"vflowopt: cell={cell} makes {cells} cells and {kept} tokens are kept;"
                " take a larger cell or keep more tokens"
            )
        return kept

    def __call__(
        self,
        features: Tensor,
        *,
        global_attention: Tensor,
        patch_entropy: Tensor | None = None,
        shape: VisualShape | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Keep and recycle.

        Args:
            features: f32 [1, N, C].
            global_attention: f32 [1, N], mean attention of the global tokens.
            patch_entropy: f32 [1, N], softmax of the entropies; only where alpha is not 0.
            shape: The grids; None is one square grid.

        Returns:
            Tokens f32 [1, K, C], and their positions i32 [1, K], ascending.
        """
        kept = kept_tokens("vflowopt", self.tokens, features.shape[1])
        if kept == features.shape[1]:
            return keep_all(features)
        shape = shape or square_shape("vflowopt", features)
        check_shape("vflowopt", features, shape)
        importance = global_attention[0]
        if patch_entropy is not None:
            importance = importance + self.alpha * patch_entropy[0]
        cell = self._cell(shape)
        if cell is None:
            return select_tokens(features, largest_indices(importance, kept))
        weights, positions = recycle(importance, cells_of(shape, cell), kept)
        return weights @ features, positions.to(torch.int32).unsqueeze(0)

    def _cell(self, shape: VisualShape) -> float | None:
        """Side of a cell, or None where nothing is recycled."""
        return CELL if self.cell is None and shape.global_view else self.cell


def cells_of(shape: VisualShape, side: float) -> list[int]:
    """Cell of each token; each grid has its own cells, in raster order."""
    cells: list[int] = []
    for height, width in shape.grids:
        start, across = max(cells, default=-1) + 1, int((width - 1) / side) + 1
        cells += [
            start + int(row / side) * across + int(column / side)
            for row in range(height)
            for column in range(width)
        ]
    return cells


def recycle(importance: Tensor, cells: list[int], kept: int) -> tuple[Tensor, Tensor]:
    """W, from importance f32 [N], above -2, and the cell of each token.

    Returns:
        Weights f32 [K, N] and the positions of the kept tokens i64 [K], ascending.
    """
    total, count, cell = importance.shape[0], max(cells) + 1, torch.tensor(cells)
    rank = ranks(importance)
    inside = cell == torch.arange(count).unsqueeze(1)  # [G, N]
    left = (inside & (rank >= kept - count)).sum(1) > 0
    low = rank >= kept - left.sum()
    # Below any importance: a token that is not one of the cell's others.
    best = torch.where(inside & low, importance, -2.0)
    first = (best.argmax(1).unsqueeze(1) == torch.arange(total)) & (best.amax(1, True) > -2.0)
    # Kept tokens come before the first of each cell, and these before all others.
    order = torch.where(low, rank + 2 * total, rank) - total * (first.sum(0) > 0)
    positions = marked_indices(ranks(-order.float()) < kept, kept)
    group = cell.index_select(0, positions).unsqueeze(1) == cell
    weighted = (group & low) * torch.where(importance == 0, SMALLEST_NORM, importance)
    own = (positions.unsqueeze(1) == torch.arange(total)).float()
    sums = weighted.sum(1, keepdim=True)
    mean = weighted / torch.where(sums == 0, 1.0, sums)  # 0 where the row is of a kept token
    return torch.where(low.index_select(0, positions).unsqueeze(1), mean, own), positions


def calibrate(
    subject: Subject,
    progress: Callable[[str], None],
    *,
    tokens: int,
    trials: int = 60,
    seed: int = 0,
) -> Calibrated:
    """Search t, alpha and, for tiles, cell, under which the model's last state stays as it was.

    The original asks a Bayesian optimizer 300 times for the largest sum, over pictures, of the
    cosine of the last states with all and with K tokens; here options are drawn at random from its
    ranges and the largest mean is taken. t goes up to where a view has no global token any more.

    Args:
        subject: The model, and pictures with a question each.
        progress: Called with a line for each picture.
        tokens: K.
        trials: Options that are tried; the first is that all tokens are global, without entropy.
        seed: Of the draw.

    Raises:
        PlanError: If the model cannot keep K tokens, or there is no trial.
        RecipeError: If the model answers no questions.
    """
    for name, value, least in (("tokens", tokens, 1), ("trials", trials, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise PlanError(f"vflowopt: got {name}={value}, expected an integer from {least} on")
    Method(tokens).plan(subject.shape)
    most = min(_most_times(subject, picture) for picture in subject.pictures())
    methods = list(_draw(subject.shape, tokens, most, trials, seed))
    sums, count = [0.0] * len(methods), 0
    for count, picture in enumerate(subject.pictures(), 1):
        progress(f"picture {count}: {len(methods)} options")
        for index, cosine in enumerate(_cosines(subject, picture, methods)):
            sums[index] += cosine
    best = max(range(len(methods)), key=sums.__getitem__)
    chosen = methods[best]
    options: dict[str, OptionValue] = {"t": chosen.global_times, "alpha": chosen.alpha}
    if chosen.cell is not None:
        options["cell"] = chosen.cell
    return Calibrated(
        options,
        {
            "tokens": tokens,
            "pictures": count,
            "trials": len(methods),
            "t_most": round(most, 3),
            "cosine": sums[best] / count,
            "cosine_all_global": sums[0] / count,
        },
    )


def _draw(shape: VisualShape, tokens: int, most: float, trials: int, seed: int) -> Iterator[Method]:
    """Methods to try; every second one without entropy."""
    draw = random.Random(seed)
    yield Method(tokens)
    for number in range(1, trials):
        t = round(draw.uniform(0, most), 3)
        alpha = round(draw.uniform(-1, 1), 3) if number % 2 else 0.0
        cell = round(draw.uniform(*CELLS), 3) if shape.global_view else None
        method = Method(tokens, t=t, alpha=alpha, cell=cell)
        try:
            method.plan(shape)
        except PlanError:  # more cells than tokens
            continue
        yield method


def _most_times(subject: Subject, picture: Picture) -> float:
    """How many times the mean the most attended token of a view receives; the least of all."""
    _, weights, _ = _encoded(subject, picture)
    drop = int(subject.encoder.spec.class_token)
    received = [view.mean(1)[0, drop:] for view in weights]
    return min(float(row.max() / row.mean()) for row in received)


def _cosines(subject: Subject, picture: Picture, methods: Sequence[Method]) -> Iterator[float]:
    """Cosine of the last states with all tokens and with those that each method keeps."""
    features, weights, entropies = _encoded(subject, picture)
    encoder, parts, drop = subject.encoder, subject.parts, int(subject.encoder.spec.class_token)
    full = picture.last_state(*keep_all(features))
    for method in methods:
        rows = [global_rows(view, method.global_times, bool(drop))[:, drop:] for view in weights]
        folded = [encoder.fold(row.unsqueeze(-1)).squeeze(-1) for row in rows]
        kept = method(
            features,
            global_attention=pack(parts.pack, torch.cat(folded, 1)),
            patch_entropy=entropies,
            shape=subject.shape,
        )
        state = picture.last_state(*kept)
        yield float(torch.nn.functional.cosine_similarity(full, state, 0))


def _encoded(subject: Subject, picture: Picture) -> tuple[Tensor, list[Tensor], Tensor]:
    """Features [1, N, C], attention of each view [1, n, n], and softmax of the entropies [1, N]."""
    observed = observe(subject.parts, ("patch_entropy",), image=subject.image)
    modules: tuple[Any, ...] = observed.encoder.modules
    *before, last, connector = modules
    features, weights, entropies = [], [], []
    for view in torch.split(picture.views, 1):
        (x,), (shares,) = encode(before, view)
        query, key, _ = last.project(x)
        weights.append(attention_scores(query, key, last.heads).softmax(-1).mean(1))
        features.append(connector(last(x)))
        entropies.append(shares)
    pack_all = subject.parts.pack
    return pack_all(torch.cat(features, 1)), weights, pack(pack_all, torch.cat(entropies, 1))
