"""AIM, the pruning: visual tokens leave the second half of the language model by PageRank.

After each layer from the middle to three quarters of the depth an eighth of the visual tokens
leaves, those of the least importance: a PageRank over the layer's attention. d starts even over the
prompt, five times d becomes d M, where M is the softmax of the attention scores at temperature 0.1,
and heads are joined as the root of the mean square.

Source: AIM (arXiv 2412.03248), LaVi-Lab/AIM. Limits: attention of the whole prompt to itself, for
each stage.
"""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import largest_indices

SOURCE = (
    "AIM (arXiv 2412.03248), section 3.3, LaVi-Lab/AIM@edc24e9"
    " .../qwen2/modeling_qwen2.py: get_importance"
)
SUMMARY = "drops visual tokens in the second half of the language model, by PageRank"
FORMULA = "d <- d softmax(QK^T / (0.1 sqrt D)), five times; top-k of d"
STATIC = "five products [s] x [s, s] a stage"
DIFFERS = (
    "tokens leave (original: masks hide them, which saves nothing), so one that has left has no say"
    " in later importances (original: it has, in the first of the five products). With other than"
    " 28 layers, each layer has the mean of what the original's layers at its depth see"
)
COMPARED = "end to end"
# Of 28 layers the first that sees fewer, each an eighth of the tokens fewer than the one before.
FIRST, EIGHTHS, DEPTH = 15, 8, 28
TEMPERATURE, STEPS = 0.1, 5


class Method(DecoderMethod):
    """Lets all visual tokens leave between the middle and three quarters of the layers."""

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees."""
        left = [tokens, *(int(tokens * share(layer, layers)) for layer in range(1, layers))]
        at = tuple(i for i in range(1, layers) if left[i] < left[i - 1])
        return layer_counts("aim", tokens, layers, at, tuple(left[i] for i in at))

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose by importance.

        Args:
            look: The layer and its input.
            hidden: Its output.
            kept: k, visual tokens that stay.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        prompt = (look.rows <= look.last).float()
        scores = importance(look.scores(look.rows), prompt)
        return None, largest_indices(scores.index_select(0, look.visual), kept)


def share(layer: int, layers: int) -> Fraction:
    """Part of the visual tokens that a layer sees.

    Layers of another depth cover a part of the original's 28 each, and see its mean.
    """
    seen = 0  # eighths, in parts of which an original layer has `layers` and a layer has DEPTH
    for original in range(DEPTH):
        start = max(DEPTH * layer, layers * original)
        stop = min(DEPTH * (layer + 1), layers * (original + 1))
        seen += max(0, stop - start) * min(EIGHTHS, max(0, EIGHTHS - 1 - (original - FIRST)))
    return Fraction(seen, DEPTH * EIGHTHS)


def importance(scores: Tensor, prompt: Tensor) -> Tensor:
    """PageRank of the tokens of a prompt.

    Args:
        scores: Attention before its softmax, f32 [heads, s, s], -1e4 where a token is masked.
        prompt: 1 for the prompt's tokens, 0 for the padding after them, f32 [s].

    Returns:
        f32 [s].
    """
    weights = (scores / TEMPERATURE).softmax(-1)
    rank = (prompt / prompt.sum()).expand(scores.shape[0], 1, -1)
    for _ in range(STEPS):
        rank = rank @ weights
    return rank[:, 0].square().mean(0).sqrt()
