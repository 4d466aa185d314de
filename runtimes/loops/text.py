"""The text loop: images -> views -> encode -> reduce -> a prompt's rows -> tokens -> text.

`decoder` runs the rows; each further token reads one row of the embedding table.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import ClassVar

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.kinds.vlm import VlmPlan
from edgevlm.errors import InputError
from edgevlm.runtimes import values
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.loops.answers import Answer
from edgevlm.runtimes.loops.buffers import bind
from edgevlm.runtimes.loops.contract import RunRequest
from edgevlm.runtimes.loops.drafts import Draft, parse
from edgevlm.runtimes.loops.sampling import Sampling, chooser
from edgevlm.runtimes.loops.sequence import assemble, text_positions
from edgevlm.runtimes.loops.spelling import (
    Visual,
    check_length,
    claim,
    first_turn,
    mixed,
    turn_parts,
    with_images,
)
from edgevlm.runtimes.loops.tables import load_tables, load_tokenizer
from edgevlm.runtimes.loops.vision import VisionLoop
from edgevlm.runtimes.residency.memory import peak_rss_bytes, return_freed

BYTE = re.compile("<0x[0-9A-F]{2}>")  # a byte of a letter that is no token


class TextLoop(VisionLoop):
    """A conversation over one bundle. Not safe for two threads."""

    takes: ClassVar[tuple[str, ...]] = (
        "prompt", "image", "video", "system", "chat", "max_new_tokens", "temperature", "top_p",
        "draft", "seed", "stream", "fps", "pace", "ask_every", "picker",
    )  # fmt: skip
    needs: ClassVar[tuple[str, ...]] = ("prompt", "chat", "stream")
    usage: ClassVar[str] = (
        "the bundle answers questions; give --prompt TEXT, or --chat to type them, and --image or"
        " --video FILE"
    )

    def __init__(self, bundle: Bundle, blocks: Blocks) -> None:
        self.tokenizer = load_tokenizer(bundle, bundle.plan.host.vocabulary)
        self.table = load_tables(bundle)
        return_freed()  # memory of parsing, which new arrays would reuse and count twice
        super().__init__(bundle, blocks)
        self._history: list[int] = []  # ids of the turns before

    def reset(self) -> None:
        """Forget the conversation; the next one may reuse rows of the cache."""
        super().reset()
        self._history = []

    def answers(self, request: RunRequest) -> Iterator[Answer]:
        """An answer for each question, in one new conversation; see `contract.Loop`."""
        draft = None if request.draft is None else parse(request.draft, self.plan)
        self.reset()
        if request.system is not None:
            self._check_order(("",), request.system)  # before a question is typed
        visuals, first = self.visuals(request.images, request.video), True
        unreadable = list[InputError]()

        def seen() -> Sequence[Visual]:
            try:
                return visuals()
            except InputError as cause:
                unreadable.append(cause)
                raise

        for question in request.questions:
            if first:
                self.pick_by(request.picker, question)
            try:
                answer = self.ask(
                    with_images(question, len(request.images) if first else 0),
                    seen if first else tuple,
                    request.max_new_tokens,
                    request.sampling,
                    request.on_text,
                    draft,
                    request.system if first else None,
                )
            except InputError as cause:
                if request.on_refused is None or cause in unreadable:
                    raise
                request.on_refused(cause)
                continue
            yield answer
            first = False

    def ask(
        self,
        question: str | Sequence[str | None],
        visuals: Callable[[], Sequence[Visual]] = tuple,
        max_new_tokens: int = 64,
        sampling: Sampling = Sampling(),
        on_text: Callable[[str], None] = lambda _: None,
        draft: Draft | None = None,
        system: str | None = None,
    ) -> Answer:
        """Answer one turn.

        Args:
            question: The user's text, behind the images; or texts and None for each image, in
                their order. Empty texts of these are left out.
            visuals: Returns the images or clips of this turn; called inside the measured time.
            max_new_tokens: Most tokens to generate.
            sampling: How tokens are chosen.
            on_text: Called with each new part of the text.
            draft: Drafts tokens that are then checked together, see `drafts`. The answer is that
                without a draft, as far as two graphs round alike.
            system: A system text in front of the first turn.

        Raises:
            InputError: If the turn does not fit the context, an argument has another type or is
                out of range, the model's template has no place for the system text or for texts
                between images, or the bundle cannot check a draft.
        """
        parts = turn_parts(question)
        self._check_order(parts, system)
        max_new_tokens = values.whole("max_new_tokens", max_new_tokens, least=1)
        values.instance("sampling", sampling, Sampling)
        values.function("on_text", on_text)
        if draft is not None and not self.plan.host.check:
            raise InputError(_no_check(self.plan))
        self.check_whole()
        started = time.perf_counter()
        self.start_turn()
        free = self.plan.host.states.tokens - self.length
        shorter = "begin a new conversation" if self.length else "ask a shorter question"
        full = f"the context of {self.plan.host.states.tokens} has room for {max(free - 1, 0)};"
        full += f" {shorter}, or export with a larger --context"
        text = "".join([system or "", *(part or "" for part in parts)])
        check_length(self.tokenizer, text, free, full)
        encoded = visuals()
        if self.length and encoded:
            raise InputError("images belong to the first turn; start a new conversation")
        if None not in parts:
            parts = [*[None] * len(encoded), *parts]
        layout = self.plan.host.layout
        items = layout.turn if self.length else first_turn(layout, parts, system)
        if not items:
            raise InputError(
                "the model answers one question about a picture; give an image, and begin a new"
                " conversation for another question"
            )
        row_bytes = 4 * self.plan.host.states.tokens * self.plan.host.row_columns
        claim(text, row_bytes, self.blocks.shortage)
        prompt = assemble(
            self.plan, items, self.table, self.tokenizer, text, encoded, self.position
        )
        room = free - len(prompt.rows)
        if room < 1:
            raise InputError(f"the turn has {len(prompt.rows)} tokens, {full}")
        self.blocks.settle()
        self.prefill_ms = _timed(lambda: self.prefill(self.uncached(prompt)))
        self.checks = self.drafted = self.accepted = 0
        self._history += prompt.ids
        choose = chooser(sampling)
        ids = [choose(self.logits())]
        first = time.perf_counter()
        shown = TextStream(self.tokenizer, on_text)
        stopped = self.generate(ids, min(max_new_tokens, room), choose, shown, draft)
        seconds = time.perf_counter() - first
        if stopped == "length" and room < max_new_tokens:
            stopped = "context"
        if stopped != "stop":
            # The next turn begins after the reply, so its last token goes into the cache too.
            self._step_token(ids[-1])
        self._history += ids
        return Answer(
            text=shown.finish(),
            token_ids=tuple(ids),
            stopped=stopped,
            visual_tokens=sum(len(v.tokens) for v in encoded),
            prompt_tokens=len(prompt.rows),
            load_ms=self.load_ms,
            vision_ms=self.vision_ms,
            reduce_ms=self.reduce_ms,
            prefill_ms=self.prefill_ms,
            ttft_ms=(first - started - self.decoding_s) * 1e3,
            decode_tokens_per_s=(len(ids) - 1) / seconds if len(ids) > 1 else None,
            peak_rss_bytes=peak_rss_bytes(),
            engine=self.blocks.engine.name,
            loads=self.blocks.loads,
            checks=self.checks,
            drafted=self.drafted,
            accepted=self.accepted,
        )

    def _check_order(self, parts: Sequence[str | None], system: str | None) -> None:
        """Refuse a system text, and an order of texts and images, that the bundle cannot place."""
        host, family = self.plan.host, self.plan.source.family
        if system is not None and not values.text("the system prompt", system).strip():
            raise InputError("the system prompt is empty; give a text, or leave it out")
        if self.length and (system is not None or len(parts) > 1 or parts[0] is None):
            raise InputError(
                "a further turn is one text, and a system prompt belongs to the first turn; start"
                " a new conversation"
            )
        if system is not None and not host.layout.prompt_system:
            raise InputError(
                f"the chat template of this {family} model has no place for a system prompt; leave"
                " it out, or write it into the question"
            )
        if None in parts and host.image.frames > 1:
            raise InputError(
                "the frames of a clip have one place, in front of the question; give them as"
                " images, and the prompt as one text"
            )
        if mixed(parts) and not host.layout.mixes:
            raise InputError(
                f"the chat template of this {family} model puts images first and one text behind"
                " them; give the images, and the prompt as one text"
            )

    def generate(
        self,
        ids: list[int],
        most: int,
        choose: Callable[[Array], int],
        shown: TextStream,
        draft: Draft | None,
    ) -> str:
        """Add tokens to `ids`, of which there is one, until one stops or there are `most`.

        Returns:
            Why it ended, `stop` or `length`.
        """
        stops, streamed = set(self.plan.host.stop_ids), 0
        while True:
            for token in ids[streamed:]:
                if token in stops:
                    return "stop"
                shown.add(token)
            streamed = len(ids)
            if streamed == most:
                return "length"
            guesses = self._guess(ids, most, draft, stops) if draft else None
            if guesses is None:
                self._step_token(ids[-1])
                ids.append(choose(self.logits()))
            else:
                ids += self._check(ids[-1], guesses, choose)

    def _guess(
        self, ids: Sequence[int], most: int, draft: Draft, stops: set[int]
    ) -> list[int] | None:
        """Drafted tokens; None where a single step is better."""
        check, room = self.plan.host.check, self.plan.host.states.tokens - self.length
        if room < check:
            return None
        guesses = draft(self, [*self._history, *ids], min(check - 1, most - len(ids) - 1))
        guesses = list(takewhile(lambda token: token not in stops, guesses))
        # With a budget, switching between two functions would load both each time.
        return guesses if guesses or not self.blocks.keeps_all else None

    def _check(
        self, last: int, guesses: Sequence[int], choose: Callable[[Array], int]
    ) -> list[int]:
        """The tokens after `last`: the accepted drafted ones, and one that the model chooses."""
        rows = np.asarray(self.table[[last, *guesses]])
        self.run("check", rows, text_positions(self.plan, self.position, len(rows)))
        for block in self.plan.stage("head"):
            self.blocks.run(block.name, "check")
        tokens: list[int] = []
        for index in range(len(rows)):
            tokens.append(choose(np.concatenate([part[index] for part in self.arrays.checked])))
            if index == len(guesses) or tokens[-1] != guesses[index]:
                break
        self.advance(rows[: len(tokens)])
        self.checks, self.drafted = self.checks + 1, self.drafted + len(guesses)
        self.accepted += len(tokens) - 1
        return tokens

    def _step_token(self, token: int) -> None:
        if self.length < self.plan.host.states.tokens:
            self.step("decode", self.table[token][None])


class TextStream:
    """Text of the ids so far; holds back characters that the next token may still change."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self._decoder: DecodeStream | None = DecodeStream(skip_special_tokens=True)
        self._characters = 0  # of the text that was sent

    def add(self, token: int) -> None:
        """One more token."""
        self.ids.append(token)
        byte = BYTE.fullmatch(self.tokenizer.id_to_token(token) or "") is not None
        if byte:  # what a run of bytes means shows at its end, and the stream fails inside one
            self._decoder = None
        text: str | None = ""
        if self._decoder is not None:
            text = self._decoder.step(self.tokenizer, token)
        elif not byte:
            text = self.tokenizer.decode(self.ids, skip_special_tokens=True)[self._characters :]
        if text:
            self._send(text)

    def finish(self) -> str:
        """The whole text; its last characters are sent even if they are incomplete."""
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if rest := text[self._characters :]:
            self._send(rest)
        return text

    def _send(self, text: str) -> None:
        self._characters += len(text)
        self.on_text(text)


def _no_check(plan: VlmPlan) -> str:
    """Why a bundle without `check` takes no drafts."""
    if plan.host.states.recurrent:
        return (
            "this model takes no --draft: what a wrong token does to its recurrent layers cannot be"
            " taken back; leave it out"
        )
    return "the bundle has no 'check' function for --draft; export it with --speculate 8"


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e3


# The contract of a loop's module, see `runtimes.loading`.
open_loop, bind_arrays = TextLoop, bind
