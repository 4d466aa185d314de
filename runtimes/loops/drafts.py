"""Drafts of the next tokens, for speculative decoding.

A `check` call runs all drafted tokens at once and costs less than two tokens, since the weights are
read once. A drafted token is accepted if the model chooses the same one, so answers are those
without a draft, greedy or sampled.

    lookup   the tokens that followed the last occurrence of the same tokens; costs nothing
    skip=N   the same model without its N middle blocks; `check` writes their rows of the cache

A draft with fewer visual tokens (FLASH) saves attention alone: in static graphs a token costs the
read of the weights, whatever the prompt, so fewer blocks are what makes a draft cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.errors import InputError
from edgevlm.runtimes import values
from edgevlm.runtimes.loops.sequence import text_positions

LONGEST = 3  # tokens of the longest suffix that is looked up


class DraftLoop(Protocol):
    """The members of a loop that a draft uses."""

    plan: VlmPlan
    table: Any
    length: int
    position: int

    def run(self, name: str, rows: Any, positions: Any, skipped: range = ...) -> None:
        """Run rows through the decoder, except `skipped` blocks."""

    def logits(self) -> NDArray[Any]:
        """Logits of the next token."""


# (loop, ids of the conversation with -1 for a visual token, most tokens) -> drafted tokens.
Draft = Callable[[DraftLoop, Sequence[int], int], list[int]]


def parse(text: str, plan: VlmPlan) -> Draft:
    """`lookup` or `skip=N` as a draft for a bundle.

    Raises:
        InputError: If it is neither, or skips too many of the bundle's blocks.
    """
    name, _, value = values.text("draft", text).partition("=")
    if text == "lookup":
        return lookup
    if name == "skip" and value.isdecimal() and 0 < int(value) < 10**6:
        blocks = len(plan.stage("decoder"))
        if int(value) > blocks - 2:
            raise InputError(
                f"{text} skips too many of {blocks} decoder blocks, expected at most"
                f" skip={max(blocks - 2, 0)}; export with a smaller --block-size for more"
            )
        return skip(int(value))
    raise InputError(f"a draft is lookup or skip=N with N blocks to skip, got '{text[:60]}'")


def lookup(loop: DraftLoop, ids: Sequence[int], most: int) -> list[int]:
    """The ids after the latest earlier occurrence of the last three, two or one ids.

    Source: prompt lookup decoding, an n-gram match instead of a model (A. Saxena, 2023); with
    references, arXiv 2304.04487.
    """
    for length in range(min(LONGEST, len(ids) - 1), 0, -1):
        suffix = ids[-length:]
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start : start + length] == suffix:
                continuation = ids[start + length : start + length + most]
                return list(
                    continuation[: continuation.index(-1)] if -1 in continuation else continuation
                )
    return []


def skip(count: int) -> Draft:
    """The model without `count` decoder blocks in the middle, greedy.

    Source: self-speculative decoding (Draft & Verify, arXiv 2309.08168), which skips single
    attention and MLP layers found by a search; here whole blocks, since each is a graph.
    """

    def draft(loop: DraftLoop, ids: Sequence[int], most: int) -> list[int]:
        first = (len(loop.plan.stage("decoder")) - count) // 2
        tokens, length, position = [ids[-1]], loop.length, loop.position
        try:
            for _ in range(most):
                at = text_positions(loop.plan, loop.position, 1)
                loop.run("decode", loop.table[tokens[-1]][None], at, range(first, first + count))
                loop.length, loop.position = loop.length + 1, loop.position + 1
                tokens.append(int(loop.logits().argmax()))
        finally:
            loop.length, loop.position = length, position
        return tokens[1:]

    return draft
