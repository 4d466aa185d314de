"""A schedule: how many visual tokens each run of layers sees, written out.

A search over budgets (G-Search, P-Sigmoid, VFlowOpt) ends in such a list. Which tokens stay is
decided as in FastV, by the last row of the attention of the layer before.

Source: "Searching Optimal Vision Token Reduction" (CVPR 2025), for the schedule; FastV
(arXiv 2403.06764), for the score. Limits: the prompt is one call.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.compress.shared.contract import DecoderMethod
from edgevlm.compress.shared.layer_counts import layer_counts
from edgevlm.errors import PlanError
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.selection import largest_indices

SOURCE = (
    "schedules as 'Searching Optimal Vision Token Reduction in Multimodal Large Language Models'"
    " (CVPR 2025) finds them; scores of FastV (arXiv 2403.06764)"
)
SUMMARY = "keeps as many visual tokens in each run of layers as a schedule says"
FORMULA = "as fastv, with as many tokens in each run of layers as written"
STATIC = "as fastv, for each stage"
DIFFERS = "the schedule is an option, not the result of a search"
COMPARED = "text alone"


class Method(DecoderMethod):
    """Keeps visual tokens by a schedule.

    Args:
        stages: `8x64+4x16`: the first 8 layers see 64 tokens, the next 4 see 16.

    Raises:
        ValueError: If the text has another form.
    """

    def __init__(self, *, stages: str) -> None:
        runs = [part.split("x") for part in str(stages).replace(",", "+").split("+")]
        if not all(len(run) == 2 and all(n.isdecimal() for n in run) for run in runs):
            raise ValueError(f"stages look like 8x64+4x16 (layers x tokens), got '{stages}'")
        self.stages = tuple((int(layers), int(tokens)) for layers, tokens in runs)

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees.

        Raises:
            PlanError: If the runs are not as long as the layers, or the first does not see all.
        """
        total = sum(count for count, _ in self.stages)
        if total != layers:
            raise PlanError(f"schedule: got stages of {total} layers, expected {layers}")
        if self.stages[0][1] != tokens:
            raise PlanError(
                f"schedule: the first stage has {self.stages[0][1]} tokens, expected {tokens} (what"
                " the language model gets)"
            )
        ends = [sum(count for count, _ in self.stages[:i]) for i in range(1, len(self.stages))]
        left = tuple(count for _, count in self.stages[1:])
        return layer_counts("schedule", tokens, layers, tuple(ends), left)

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[None, Tensor]:
        """Choose by the attention of the prompt's last token.

        Args:
            look: The layer and its input.
            hidden: Its output.
            kept: k, visual tokens that stay.

        Returns:
            None, for nothing merges, and which visual tokens stay, i64 [k], ascending.
        """
        return None, largest_indices(look.last_to_visual(), kept)
