"""Guesses of what a model will say next, for speculative decoding.

A `check` call runs all guesses at once and costs less than two tokens, since the weights are
read once. A token is kept if it is the one that the model chooses there itself, so answers are
those without a draft, greedy or sampled.

    lookup   what followed the last time that the same words stood there; costs nothing
    skip=N   the same model without its N middle blocks; their rows of the cache are the check's

A draft that sees fewer visual tokens (FLASH) saves attention alone: in static graphs a token costs
the reading of the weights, whatever the prompt was, so fewer blocks are what makes a draft cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.errors import InputError

LONGEST = 3  # words that must stand there again


class DraftLoop(Protocol):
    """What a draft asks of the loop that it guesses for."""

    plan: VlmPlan
    table: Any
    length: int
    position: int

    def run(self, name: str, rows: Any, positions: Any, skipped: range = ...) -> None:
        """Run rows through the decoder, or without some blocks."""

    def logits(self) -> NDArray[Any]:
        """Scores of the next token."""


# The loop, the ids of the conversation (-1 for a visual token), most guesses -> guesses.
Draft = Callable[[DraftLoop, Sequence[int], int], list[int]]


def parse(text: str, plan: VlmPlan) -> Draft:
    """`lookup` or `skip=N` as a draft for a bundle.

    Raises:
        InputError: If it is neither, or leaves too few of the bundle's blocks.
    """
    name, _, value = text.partition("=")
    if text == "lookup":
        return lookup
    if name == "skip" and value.isdecimal() and 0 < int(value) < 10**6:
        blocks = len(plan.stage("decoder"))
        if int(value) > blocks - 2:
            raise InputError(
                f"{text} does not leave the first and the last of {blocks} decoder blocks; export"
                " with a smaller --block-size"
            )
        return skip(int(value))
    raise InputError(f"a draft is lookup or skip=N with N blocks, got '{text[:60]}'")


def lookup(loop: DraftLoop, ids: Sequence[int], most: int) -> list[int]:
    """What followed the latest earlier place with the same last three, two or one ids.

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

    Source: self-speculative decoding (Draft & Verify, arXiv 2309.08168), which leaves out single
    attention and MLP layers that a search found; here whole blocks, since those are the graphs.
    """

    def draft(loop: DraftLoop, ids: Sequence[int], most: int) -> list[int]:
        first = (len(loop.plan.stage("decoder")) - count) // 2
        tokens, length, position = [ids[-1]], loop.length, loop.position
        try:
            for _ in range(most):
                row, at = loop.table[tokens[-1]][None], np.asarray([loop.position], np.int32)
                loop.run("decode", row, at, range(first, first + count))
                loop.length, loop.position = loop.length + 1, loop.position + 1
                tokens.append(int(loop.logits().argmax()))
        finally:
            loop.length, loop.position = length, position
        return tokens[1:]

    return draft
