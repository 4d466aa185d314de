"""DART: keep a few pivots, and for each the visual tokens that are least similar to it.

After layer l - 1, with its keys and with its output as the norm after the last layer makes it:

 1. Pivots: the four visual tokens with the largest L1 norm of their keys, and the four words of the
    prompt after the picture with the largest.
 2. In turn, each pivot takes its budget: of the visual tokens that are not yet taken those with the
    smallest cosine to it.
 3. The visual pivots and what was taken stay.

Tokens are kept because they are no duplicates, not because they are important; pivots only give
directions to differ from. Budgets are equal; the first pivots take one more where they do not
divide.

Source: DART (arXiv 2502.11494); maths as in ModelTC/LightCompress. Limits: the prompt is one call;
of nearly equal cosines another engine may take another one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import (
    ROUNDING,
    largest,
    largest_indices,
    marked,
    marked_indices,
    unit_rows,
)

SOURCE = (
    "DART (arXiv 2502.11494), section 3.3, as in ModelTC/LightCompress@9701d03"
    " llmc/compression/token_reduction/dart.py: get_retained_image_token, pruning_hook"
)
SUMMARY = (
    "keeps the visual tokens that are least similar to a few pivots, visual tokens and words with"
    " large keys, after one layer"
)
FORMULA = (
    "pivots with the largest |k|_1; each takes the tokens of the smallest cos(norm(h), pivot) left"
)
STATIC = "keys of one layer, one product [pivots, N] and a top-k for each pivot, unrolled"
DIFFERS = (
    "pivots take their turn in the order of their rows (original: in the order of a Python set of"
    " these numbers, which is that of a hash table); in the original's order the same tokens. The"
    " number of tokens is met exactly (original: 4 + 8 n)"
)
COMPARED = "end to end"

# Of the visual tokens, as LightCompress sets it.
PART = 1 - 0.7778
# Below the negative of any cosine: a taken token is not taken again.
NEVER = -4.0


class Method(DecoderMethod):
    """Keeps some visual tokens from layer l on.

    Args:
        tokens: Visual tokens that stay, pivots among them; None is the original's rate, 0.2222 of
            them, its budgets rounded down.
        layer: l, counted from 0: the first layer that sees fewer.
        image_pivots: Visual pivots; with fewer tokens than that, as many.
        text_pivots: Pivots among the words after the picture; where there are fewer words, the one
            with the largest key takes the turns of those that lack.

    Raises:
        ValueError: If there is no visual pivot, or a negative number of others.
    """

    final_norm = True

    def __init__(
        self, *, tokens: int | None = None, layer: int = 2, image_pivots: int = 4,
        text_pivots: int = 4,
    ) -> None:  # fmt: skip
        for name, value, least in (
            ("image_pivots", image_pivots, 1), ("text_pivots", text_pivots, 0)
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"{name} is a number of pivots, at least {least}, got {value}")
        self.tokens, self.layer = tokens, layer
        self.image_pivots, self.text_pivots = image_pivots, text_pivots

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If the layer is not there, or more should stay than there are.
        """
        left, pivots = self.tokens, self.image_pivots + self.text_pivots
        if left is None:
            left = min(tokens, self.image_pivots + pivots * int(tokens * PART // pivots))
        return layer_counts("dart", tokens, layers, (self.layer,), (left,))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose.

        Args:
            look: The layer and its input.
            hidden: Its output, f32 [1, s, C].
            kept: k, visual tokens that stay.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        norms = look.keys().abs().sum((0, 2))  # [s]
        count, total = min(self.image_pivots, kept), look.visual.shape[0]
        image = largest_indices(norms.index_select(0, look.visual), count)
        unit = unit_rows(look.final_norm(hidden)[0])
        pivots = look.visual.index_select(0, image)
        if self.text_pivots:
            pivots = torch.cat([pivots, word_pivots(norms, look.words, self.text_pivots)])
        cosine = unit.index_select(0, pivots) @ unit.index_select(0, look.visual).transpose(0, 1)
        each, more = divmod(kept - count, len(pivots))
        budgets = [each + (turn < more) for turn in range(len(pivots))]
        stays = take_dissimilar(cosine, marked(image, total), budgets)
        return None, marked_indices(stays, kept)


def word_pivots(norms: Tensor, words: Tensor, count: int) -> Tensor:
    """The words with the largest norms; where there are fewer, the largest in their place.

    Args:
        norms: Of all rows, f32 [s], 0 or more.
        words: Which rows are words after the picture, bool [s].
        count: How many; at most as many as rows.

    Returns:
        Rows i64 [count].
    """
    of_words = torch.where(words, norms, -1.0)
    rows = largest_indices(of_words, min(count, len(norms)))
    first = of_words.argmax(0, keepdim=True)
    return torch.where(words.index_select(0, rows), rows, first)


def take_dissimilar(cosine: Tensor, taken: Tensor, counts: Sequence[int]) -> Tensor:
    """Each pivot in turn takes the tokens that are least similar to it.

    Args:
        cosine: f32 [P, N], of pivots and tokens.
        taken: bool [N], tokens taken before.
        counts: How many tokens each pivot takes.

    Returns:
        bool [N], tokens taken in the end. O(P N).
    """
    dissimilarity = -cosine.clamp(max=1.0 - ROUNDING)
    for pivot, count in enumerate(counts):
        if count:
            taken = taken | largest(torch.where(taken, NEVER, dissimilarity[pivot]), count)
    return taken
