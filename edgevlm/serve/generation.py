"""One completion by a loop: earlier turns replayed, stop strings, an end at any token.

The server keeps no conversation, so earlier replies are given to the loop as if it had chosen
their tokens: the state is that of the conversation itself. Each of these costs a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.libraries import replaced
from edgevlm.runtimes.loops.sampling import Sampling
from edgevlm.runtimes.loops.spelling import Visual
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.serve.requests import Completion, Turn


class Ended(Exception):
    """Raised through a loop, between two of its calls, so that it ends; it can be used again."""


@dataclass
class Result:
    """What a completion took."""

    finish: str = "stop"
    prompt_tokens: int = 0  # of all turns, with replies and visual tokens
    visual_tokens: int = 0
    completion_tokens: int = 0
    tokens_per_s: float | None = None


class Cut:
    """Text up to a stop string; the beginning of one is held back until it is decided."""

    def __init__(self, stops: Sequence[str], send: Callable[[str], None]) -> None:
        self.stops, self.send, self.held = stops, send, ""

    def __call__(self, text: str) -> None:
        """Take a piece of text; `Ended` at a stop string."""
        self.held += text
        found = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            self._give(min(found))
            self.held = ""
            raise Ended
        ends = (
            n for stop in self.stops for n in range(1, len(stop)) if self.held.endswith(stop[:n])
        )
        self._give(len(self.held) - max(ends, default=0))

    def finish(self) -> None:
        """Send what was held back."""
        self._give(len(self.held))

    def _give(self, count: int) -> None:
        piece, self.held = self.held[:count], self.held[count:]
        if piece:
            self.send(piece)


def complete(
    loop: TextLoop, asked: Completion, send: Callable[[str], None], check: Callable[[], None]
) -> Result:
    """Answer a request in a new conversation.

    Args:
        loop: The model.
        asked: The request.
        send: Called with each piece of the answer.
        check: Called before each call of the decoder; what it raises ends the answer.

    Raises:
        InputError: If the model does not take it.
    """
    loop.reset()
    result, run, logits, cut = Result(), loop.run, loop.logits, Cut(asked.stops, send)

    def watched(*arguments: Any, **named: Any) -> None:
        check()
        run(*arguments, **named)

    def counted() -> Any:
        if not result.completion_tokens:
            result.prompt_tokens = loop.length
        result.completion_tokens += 1
        return logits()

    with replaced(loop, "run", watched):
        for index, turn in enumerate(asked.turns):
            system = None if index else asked.system
            question, seen = _question(loop, turn), _seen(loop, turn, result, check)
            if turn.reply is not None:
                _replay(loop, question, seen, turn.reply, system)
                continue
            with suppress(Ended), replaced(loop, "logits", counted):
                answer = loop.ask(
                    question, seen, asked.most_tokens, asked.sampling, cut, None, system
                )
                result.tokens_per_s = answer.decode_tokens_per_s
                result.finish = "stop" if answer.stopped == "stop" else "length"
    cut.finish()
    return result


def _question(loop: TextLoop, turn: Turn) -> str | list[str | None]:
    """The question in its order; pictures first where the template knows no other."""
    host, parts = loop.plan.host, list(turn.parts)
    if None not in parts or (host.layout.mixes and host.image.frames == 1):
        return parts if None in parts else "\n".join(part for part in parts if part)
    return "\n".join(part for part in parts if part)


def _seen(
    loop: TextLoop, turn: Turn, result: Result, check: Callable[[], None]
) -> Callable[[], Sequence[Visual]]:
    visuals = loop.visuals(turn.pictures)

    def see() -> Sequence[Visual]:
        check()
        found = visuals()
        result.visual_tokens += sum(len(each.tokens) for each in found)
        return found

    return see


def _replay(
    loop: TextLoop,
    question: str | list[str | None],
    seen: Callable[[], Sequence[Visual]],
    reply: str,
    system: str | None,
) -> None:
    """A turn whose reply is known: greedy choice among logits that leave one token."""
    ids = list(loop.tokenizer.encode(reply, add_special_tokens=False).ids)
    ids += list(loop.plan.host.stop_ids[:1])
    waiting = iter(ids)

    def logits() -> Any:
        token = next(waiting)
        return np.arange(token + 1)  # the greatest is the last

    if ids:
        with replaced(loop, "logits", logits):
            loop.ask(question, seen, len(ids), Sampling(), system=system)
