"""The text loop: pictures -> views -> encode -> reduce -> prefill in chunks -> decode.

The host owns every array, the cache among them, and binds them to the engine once; a token then
costs one row of the embedding table, one run per block, and no allocation of weights or cache.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from edgevlm.bundle import Bundle
from edgevlm.errors import InputError
from edgevlm.runtimes import images
from edgevlm.runtimes.binding import Array, bind
from edgevlm.runtimes.drafts import Draft
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.memory import peak_rss_bytes, return_freed
from edgevlm.runtimes.sampling import Sampling, chooser
from edgevlm.runtimes.sequence import (
    Piece,
    Visual,
    assemble,
    causal_mask,
    load_table,
    load_tokenizer,
    prompt_state,
    rotary_tables,
)

PICTURES = 4  # whose visual tokens are remembered


@dataclass(frozen=True)
class Answer:
    """One answer with its measurements; times in ms, `ttft_ms` from the decoded image on."""

    text: str
    token_ids: tuple[int, ...]
    stopped: str
    visual_tokens: int
    prompt_tokens: int
    load_ms: float
    vision_ms: float
    reduce_ms: float
    prefill_ms: float
    ttft_ms: float
    decode_tokens_per_s: float | None
    peak_rss_bytes: int
    engine: str
    loads: int
    checks: int
    drafted: int
    accepted: int


class TextLoop:
    """A conversation over one bundle. Not safe for two threads."""

    def __init__(self, bundle: Bundle, blocks: Blocks) -> None:
        self.bundle, self.blocks, self.plan = bundle, blocks, bundle.plan
        self.tokenizer, self.table = load_tokenizer(bundle), load_table(bundle)
        return_freed()  # what parsing took: arrays would lie in it, and be counted twice
        started = time.perf_counter()
        self.arrays = bind(self.plan, blocks)
        blocks.open()
        self.load_ms = (time.perf_counter() - started) * 1e3
        self._known: dict[bytes, Visual] = {}  # by hash of the pixels
        self._marks = np.zeros(self.plan.host.kv.tokens, np.int64)  # of the cache's rows
        self._marked = 0  # rows of the cache, from the first, whose marks are known
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; what the cache holds may serve the next one."""
        self.length, self.position, self.pruned, self._plain = 0, 0, 0, True
        for arrays in self.arrays.steps.values():
            if "bias" in arrays:
                arrays["bias"][:] = 0.0
        self.vision_ms = self.reduce_ms = 0.0
        self._said: list[int] = []  # ids of the turns before

    def forget(self) -> None:
        """Forget the conversation, the pictures and all that the cache holds: for who measures."""
        self.reset()
        self._known.clear()
        self._marked = 0

    def see(
        self, pictures: Sequence[Image.Image], times: Sequence[float] = (), duration: float = 0.0
    ) -> Visual:
        """Encode and reduce one image, or the frames of one clip; the last few are remembered."""
        image = self.plan.host.image
        if len(pictures) != image.frames:
            raise InputError(
                f"the bundle takes {image.frames} frames per clip, got {len(pictures)}"
            )
        pixels = images.views(pictures, image)
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._look(pixels)
        made = self._known[key] = self._known.pop(key)  # the last one used is the last one to go
        if len(self._known) > PICTURES:
            self._known.pop(next(iter(self._known)))
        if not times:
            times = [float(i) for i in range(len(pictures))]
            duration = float(len(pictures))
        return replace(made, times=tuple(times), duration=duration)

    def _look(self, pixels: Array) -> Visual:
        image = self.plan.host.image
        seen, chosen = self.arrays.seen, self.arrays.chosen
        count = seen["features"].shape[1] // image.views
        started = time.perf_counter()
        self.blocks.begin("encode", len(pixels))
        for index, view in enumerate(pixels):
            self.arrays.pixels[0] = view
            for block in self.plan.stage("vision"):
                self.blocks.run(block.name, "encode")
            for name, whole in seen.items():
                whole[:, index * count : (index + 1) * count] = self.arrays.view[name]
        self.vision_ms += (time.perf_counter() - started) * 1e3
        self.blocks.begin("reduce", 1)
        self.reduce_ms += _timed(lambda: self.blocks.run("reduce-0", "reduce"))
        logs = chosen.get("log_sizes")
        return Visual(
            chosen["visual_tokens"][0].copy(),
            chosen["kept_positions"][0].copy(),
            log_sizes=None if logs is None else logs[0].copy(),
        )

    def ask(
        self,
        question: str,
        visuals: Callable[[], Sequence[Visual]] = tuple,
        max_new_tokens: int = 64,
        sampling: Sampling = Sampling(),
        on_text: Callable[[str], None] = lambda _: None,
        draft: Draft | None = None,
    ) -> Answer:
        """Answer one turn.

        Args:
            question: The user's text.
            visuals: Gives the images or clips of this turn; called inside the measured time.
            max_new_tokens: Most tokens to generate.
            sampling: How tokens are chosen.
            on_text: Called with each new piece of text.
            draft: Guesses tokens that are then checked together, see `drafts`. The answer is the
                one without it, as far as two graphs round alike.

        Raises:
            InputError: If the turn does not fit the context, no token may be generated, or there is
                a draft and nothing that checks it.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if draft is not None and not self.plan.host.check:
            raise InputError(
                "the bundle has no 'check' function for a draft; export it with --speculate 8"
            )
        started = time.perf_counter()
        self.vision_ms = self.reduce_ms = 0.0
        seen = visuals()
        layout = self.plan.layout
        parts = layout.turn if self.length else layout.prompt if seen else layout.text
        if self.length and seen:
            raise InputError("pictures belong to the first turn; start a new conversation")
        piece = assemble(
            self.plan, parts, self.table, self.tokenizer, question, seen, self.position
        )
        room = self.plan.host.kv.tokens - self.length - len(piece.rows)
        if room < 1:
            raise InputError(
                f"the turn has {len(piece.rows)} tokens and {self.length} are in the context of"
                f" {self.plan.host.kv.tokens}; export with a larger --context"
            )
        self.prefill_ms = _timed(lambda: self.prefill(self._further(piece)))
        self.checks = self.drafted = self.accepted = 0
        self._said += piece.ids
        choose = chooser(sampling)
        ids = [choose(self.logits())]
        first = time.perf_counter()
        shown = _Stream(self.tokenizer, on_text)
        stopped = self._generate(ids, min(max_new_tokens, room), choose, shown, draft)
        seconds = time.perf_counter() - first
        if stopped == "length":
            # The next turn's parts begin after the reply, so its last token goes in too.
            self._step_token(ids[-1])
        self._said += ids
        return Answer(
            text=shown.finish(),
            token_ids=tuple(ids),
            stopped=stopped,
            visual_tokens=sum(len(v.tokens) for v in seen),
            prompt_tokens=len(piece.rows),
            load_ms=self.load_ms,
            vision_ms=self.vision_ms,
            reduce_ms=self.reduce_ms,
            prefill_ms=self.prefill_ms,
            ttft_ms=(first - started) * 1e3,
            decode_tokens_per_s=(len(ids) - 1) / seconds if len(ids) > 1 else None,
            peak_rss_bytes=peak_rss_bytes(),
            engine=self.blocks.engine.name,
            loads=self.blocks.loads,
            checks=self.checks,
            drafted=self.drafted,
            accepted=self.accepted,
        )

    def _further(self, piece: Piece) -> Piece:
        """The rows of a new conversation that are not in the cache from the one before.

        A system prompt, and a picture that is asked about again, are computed once.
        """
        kv = self.plan.host.kv
        if self.length or piece.bias is not None or kv.gone:
            return piece
        marks = _marks(piece.rows, piece.positions)
        most = min(len(marks) - 1, kv.tokens - self.plan.host.chunk, self._marked)
        shared = zip(marks[: max(0, most)], self._marks, strict=False)
        count = len(list(takewhile(lambda pair: pair[0] == pair[1], shared)))
        if count:
            self.length, self.position = count, int(piece.positions[count - 1]) + 1
        return Piece(piece.rows[count:], piece.positions[count:])

    def prefill(self, piece: Piece) -> None:
        """Write rows into the cache: in chunks, and one by one where that is less work."""
        done, count = 0, len(piece.rows)
        if self.plan.host.kv.gone and piece.visual:  # it is one call; all else are single rows
            self._prompt(piece)
            return
        if piece.bias is not None:
            self._plain = False
            for arrays in self.arrays.steps.values():
                arrays["bias"][..., self.length : self.length + count] = piece.bias
        calls = self._calls(count)
        self.blocks.begin("prefill", sum(name == "prefill" for name, _ in calls))
        for name, rows in calls:
            self._step(name, piece.rows[done : done + rows], piece.positions[done : done + rows])
            done += rows

    def _calls(self, count: int) -> list[tuple[str, int]]:
        """Functions that write so many rows, with the rows of each: the largest calls first."""
        host, found, done = self.plan.host, list[tuple[str, int]](), 0
        check = host.check if self.blocks.keeps_all else 0
        # A chunk takes as long as chunk / 20 single tokens, with a budget a fifth of that
        # (docs/benchmarks.md). But for checks the calls are the same ones with and without: where
        # rows are rounded, another call is another answer. A check takes nearly two tokens.
        few = host.chunk // (4 if check else 32)
        while done < count:
            left, room = count - done, host.kv.tokens - self.length - done
            if left > few and host.chunk <= room and not host.kv.gone:
                found.append(("prefill", min(host.chunk, left)))
            elif left > 1 and check and check <= room:
                found.append(("check", min(check, left)))
            else:
                found.append(("decode", 1))
            done += found[-1][1]
        return found

    def logits(self) -> Array:
        """Scores of the next token, f32 [V]."""
        for block in self.plan.stage("head"):
            self.blocks.run(block.name, "logits")
        return self.arrays.logits

    def _generate(
        self,
        ids: list[int],
        most: int,
        choose: Callable[[Array], int],
        shown: _Stream,
        draft: Draft | None,
    ) -> str:
        stops, said = set(self.plan.host.stop_ids), 0
        while True:
            for token in ids[said:]:
                if token in stops:
                    return "stop"
                shown.add(token)
            said = len(ids)
            if said == most:
                return "length"
            guessed = self._guess(ids, most, draft, stops) if draft else None
            if guessed is None:
                self._step_token(ids[-1])
                ids.append(choose(self.logits()))
            else:
                ids += self._check(ids[-1], guessed, choose)

    def _guess(
        self, ids: Sequence[int], most: int, draft: Draft, stops: set[int]
    ) -> list[int] | None:
        """What a draft thinks follows; None where a single step is the better way on."""
        check, left = self.plan.host.check, self.plan.host.kv.tokens - self.length
        if left < check:
            return None
        guessed = draft(self, [*self._said, *ids], min(check - 1, most - len(ids) - 1))
        guessed = list(takewhile(lambda token: token not in stops, guessed))
        # With a budget, going back and forth between two functions would load both each time.
        return guessed if guessed or not self.blocks.keeps_all else None

    def _check(
        self, last: int, guessed: Sequence[int], choose: Callable[[Array], int]
    ) -> list[int]:
        """The tokens after `last`: the guesses that the model makes too, and one of its own."""
        rows = np.asarray(self.table[[last, *guessed]])
        positions = np.arange(self.position, self.position + len(rows), dtype=np.int32)
        self.run("check", rows, positions)
        for block in self.plan.stage("head"):
            self.blocks.run(block.name, "check")
        made: list[int] = []
        for index in range(len(rows)):
            made.append(choose(np.concatenate([part[index] for part in self.arrays.checked])))
            if index == len(guessed) or made[-1] != guessed[index]:
                break
        self._advance(rows[: len(made)], positions)
        self.checks, self.drafted = self.checks + 1, self.drafted + len(guessed)
        self.accepted += len(made) - 1
        return made

    def _step_token(self, token: int) -> None:
        if self.length < self.plan.host.kv.tokens:
            self._step("decode", self.table[token][None], np.asarray([self.position], np.int32))

    def _prompt(self, piece: Piece) -> None:
        """Run a prompt with a picture where visual tokens leave inside the decoder."""
        count, most = len(piece.rows), self.plan.host.chunk
        if count > most:
            raise InputError(
                f"the prompt has {count} tokens, this bundle takes {most} in its one call; export"
                " with a larger --chunk"
            )
        if len(piece.visual) != self.plan.visual_tokens:
            raise InputError(
                f"the prompt has {len(piece.visual)} visual tokens, this bundle takes one image or"
                f" clip of {self.plan.visual_tokens}"
            )
        arrays = self.arrays.steps["prefill"]
        for name, given in prompt_state(self.plan, piece).items():
            arrays[name][:] = given
        self.blocks.begin("prefill", 1)
        for block in self.plan.stage("decoder"):
            self.blocks.run(block.name, "prefill")
        self.arrays.last[0, 0] = arrays["result"][0, 0]
        self.length, self.position, self.pruned = count, int(piece.positions[-1]) + 1, 1

    def _step(self, name: str, rows: Array, positions: Array) -> None:
        self.run(name, rows, positions)
        self._advance(rows, positions)

    def _advance(self, rows: Array, positions: Array) -> None:
        """Rows of the cache that were just written are the conversation's."""
        count = len(rows)
        if self._plain and self._marked >= self.length:
            self._marks[self.length : self.length + count] = _marks(rows, positions[:count])
            self._marked = self.length + count
        else:
            self._marked = min(self._marked, self.length)
        self.length += count
        self.position = int(positions[count - 1]) + 1

    def run(self, name: str, rows: Array, positions: Array, skipped: range = range(0)) -> None:
        """Run rows through the decoder, or without some blocks; the cache has them at its end."""
        arrays = self.arrays.steps[name]
        count = len(rows)
        arrays["hidden"][0, :count] = rows
        cos, sin = rotary_tables(self.plan, positions)
        arrays["cos"][0, :count], arrays["sin"][0, :count] = cos, sin
        arrays["position"][0] = self.length
        if "pruned" in arrays:
            arrays["pruned"][0] = self.pruned
        if "mask" in arrays:
            size = arrays["mask"].shape
            arrays["mask"][:] = causal_mask(self.length, size[2], size[3])
        written = 0  # which of the two arrays has the rows
        for index, block in enumerate(self.plan.stage("decoder")):
            if index in skipped:
                continue
            if (index - written) % 2:
                here, other = self.arrays.between[name][:: 1 if written % 2 == 0 else -1]
                other[:] = here
            self.blocks.run(block.name, name)
            written = index + 1
        self.arrays.last[0, 0] = arrays["result"][0, count - 1]


class _Stream:
    """Text of the ids so far; holds back what a following token may still change."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.shown = ""

    def add(self, token: int) -> None:
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if not text.endswith("\ufffd") and len(text) > len(self.shown):
            self.on_text(text[len(self.shown) :])
            self.shown = text

    def finish(self) -> str:
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if len(text) > len(self.shown):
            self.on_text(text[len(self.shown) :])
        return text


def _marks(rows: Array, positions: Array) -> list[int]:
    """A number for each row and its position; equal ones have the same, others hardly ever."""
    return [hash((row.tobytes(), int(at))) for row, at in zip(rows, positions, strict=True)]


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e3
