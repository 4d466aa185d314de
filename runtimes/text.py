"""The text loop: pictures -> views -> encode -> reduce -> prefill in chunks -> decode.

The host owns every array, the cache among them, and binds them to the engine once; a token then
costs one row of the embedding table, one run per block, and no allocation of weights or cache.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from edgevlm.bundle import Bundle
from edgevlm.errors import InputError
from edgevlm.plan import Block, Function
from edgevlm.runtimes import images
from edgevlm.runtimes.memory import peak_rss_bytes
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
from edgevlm.runtimes.streaming import Blocks

Array = NDArray[Any]
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


class TextLoop:
    """A conversation over one bundle. Not safe for two threads."""

    def __init__(self, bundle: Bundle, blocks: Blocks) -> None:
        self.bundle, self.blocks, self.plan = bundle, blocks, bundle.plan
        self.tokenizer, self.table = load_tokenizer(bundle), load_table(bundle)
        self.load_ms = _timed(self._bind_and_open)
        self._known: dict[bytes, Visual] = {}  # by hash of the pixels
        self._written = array("q")  # what the cache was made from, a mark for each row
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; what the cache holds may serve the next one."""
        self.length, self.position, self.pruned, self._plain = 0, 0, 0, True
        for arrays in self._steps.values():
            if "bias" in arrays:
                arrays["bias"][:] = 0.0
        self.vision_ms = self.reduce_ms = 0.0

    def forget(self) -> None:
        """Forget the conversation, the pictures and all that the cache holds: for who measures."""
        self.reset()
        self._known.clear()
        del self._written[:]

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
        count = self._seen["features"].shape[1] // image.views
        started = time.perf_counter()
        self.blocks.begin("encode", len(pixels))
        for index, view in enumerate(pixels):
            self._pixels[0] = view
            for block in self.plan.stage("vision"):
                self.blocks.run(block.name, "encode")
            for name, whole in self._seen.items():
                whole[:, index * count : (index + 1) * count] = self._view[name]
        self.vision_ms += (time.perf_counter() - started) * 1e3
        self.blocks.begin("reduce", 1)
        self.reduce_ms += _timed(lambda: self.blocks.run("reduce-0", "reduce"))
        logs = self._chosen.get("log_sizes")
        return Visual(
            self._chosen["visual_tokens"][0].copy(),
            self._chosen["kept_positions"][0].copy(),
            log_sizes=None if logs is None else logs[0].copy(),
        )

    def ask(
        self,
        question: str,
        visuals: Callable[[], Sequence[Visual]] = tuple,
        max_new_tokens: int = 64,
        sampling: Sampling = Sampling(),
        on_text: Callable[[str], None] = lambda _: None,
    ) -> Answer:
        """Answer one turn.

        Args:
            question: The user's text.
            visuals: Gives the images or clips of this turn; called inside the measured time.
            max_new_tokens: Most tokens to generate.
            sampling: How tokens are chosen.
            on_text: Called with each new piece of text.

        Raises:
            InputError: If the turn does not fit the context, or no token may be generated.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
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
        choose = chooser(sampling)
        ids = [choose(self.logits())]
        first = time.perf_counter()
        shown = _Stream(self.tokenizer, on_text)
        stopped = self._generate(ids, min(max_new_tokens, room), choose, shown)
        seconds = time.perf_counter() - first
        if stopped == "length":
            # The next turn's parts begin after the reply, so its last token goes in too.
            self._step_token(ids[-1])
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
        )

    def _further(self, piece: Piece) -> Piece:
        """The rows of a new conversation that are not in the cache from the one before.

        A system prompt, and a picture that is asked about again, are computed once.
        """
        kv = self.plan.host.kv
        if self.length or piece.bias is not None or kv.gone:
            return piece
        marks = _marks(piece.rows, piece.positions)
        most = min(len(marks) - 1, kv.tokens - self.plan.host.chunk)
        shared = zip(marks[: max(0, most)], self._written, strict=False)
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
            for arrays in self._steps.values():
                arrays["bias"][..., self.length : self.length + count] = piece.bias
        calls = self._calls(count)
        self.blocks.begin("prefill", sum(name == "prefill" for name, _ in calls))
        for name, rows in calls:
            self._step(name, piece.rows[done : done + rows], piece.positions[done : done + rows])
            done += rows

    def _calls(self, count: int) -> list[tuple[str, int]]:
        """Functions that write so many rows, with the rows of each: chunks first, then single."""
        chunk, kv, found, done = self.plan.host.chunk, self.plan.host.kv, [], 0
        while done < count:
            rows = min(chunk, count - done)
            fits = self.length + done + chunk <= kv.tokens and not kv.gone
            # A chunk costs about as much as chunk / 10 single tokens (docs/benchmarks.md).
            name = "prefill" if fits and rows > chunk // 10 else "decode"
            found.append((name, rows if name == "prefill" else 1))
            done += found[-1][1]
        return found

    def logits(self) -> Array:
        """Scores of the next token, f32 [V]."""
        for block in self.plan.stage("head"):
            self.blocks.run(block.name, "logits")
        return self._logits

    def _generate(
        self, ids: list[int], most: int, choose: Callable[[Array], int], shown: _Stream
    ) -> str:
        stops = set(self.plan.host.stop_ids)
        while ids[-1] not in stops:
            shown.add(ids[-1])
            if len(ids) == most:
                return "length"
            self._step_token(ids[-1])
            ids.append(choose(self.logits()))
        return "stop"

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
        arrays = self._steps["prefill"]
        for name, given in prompt_state(self.plan, piece).items():
            arrays[name][:] = given
        self.blocks.begin("prefill", 1)
        for block in self.plan.stage("decoder"):
            self.blocks.run(block.name, "prefill")
        self._last[0, 0] = arrays["result"][0, 0]
        self.length, self.position, self.pruned = count, int(piece.positions[-1]) + 1, 1

    def _step(self, name: str, rows: Array, positions: Array) -> None:
        arrays = self._steps[name]
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
        for block in self.plan.stage("decoder"):
            self.blocks.run(block.name, name)
        self._last[0, 0] = arrays["result"][0, count - 1]
        complete = self._plain and len(self._written) >= self.length
        del self._written[self.length :]
        self._written.extend(_marks(rows, positions) if complete else ())
        self.length += count
        self.position = int(positions[-1]) + 1

    def _bind_and_open(self) -> None:
        host, plan = self.plan.host, self.plan
        channels = host.embedding.columns
        vision = plan.stage("vision")
        self._pixels = _empty(vision[0].functions[0], "pixel_values")
        between = {"pixel_values": self._pixels}
        self._view: dict[str, Array] = {}  # features and signals of one view
        free: dict[str, Array] = {}  # what the block before last wrote, and nobody reads any more
        for block in vision:
            function = block.functions[0]
            needed = {id(array) for array in between.values()}
            made = {
                t.name: _reused(free.get(t.name), needed, function, t.name)
                for t in function.outputs
            }
            given = {tensor.name: between[tensor.name] for tensor in function.inputs}
            free = {f"{name}_out": array for name, array in given.items() if name != "pixel_values"}
            self.blocks.bind(block.name, "encode", given | made)
            between |= {name.removesuffix("_out"): array for name, array in made.items()}
            self._view |= made
        reduce = plan.stage("reduce")[0].functions[0]
        self._seen = {tensor.name: _empty(reduce, tensor.name) for tensor in reduce.inputs}
        self._chosen = {tensor.name: _empty(reduce, tensor.name) for tensor in reduce.outputs}
        self.blocks.bind("reduce-0", "reduce", self._seen | self._chosen)
        self._bind_decoder(plan.stage("decoder"))
        self._last = np.zeros((1, 1, channels), np.float32)
        self._logits = np.zeros(host.vocabulary, np.float32)
        for block in plan.stage("head"):
            rows = self._logits[block.pieces[0] : block.pieces[1]][None]
            self.blocks.bind(block.name, "logits", {"hidden": self._last, "logits": rows})
        self.blocks.open()

    def _bind_decoder(self, blocks: Sequence[Block]) -> None:
        kv = self.plan.host.kv
        self.cache = [np.zeros(kv.shape(i // 2), np.float32) for i in range(2 * kv.layers)]
        self._steps: dict[str, dict[str, Array]] = {}
        if kv.gone:
            self._bind_pruned(blocks)
            return
        for name in ("prefill", "decode"):
            function = blocks[0].function(name)
            shared = {
                t.name: _empty(function, t.name)
                for t in function.inputs
                if not t.name.startswith("past_")
            }
            pair = [shared["hidden"], np.zeros_like(shared["hidden"])]
            for index, block in enumerate(blocks):
                arrays = {**shared, "hidden": pair[index % 2], "hidden_out": pair[(index + 1) % 2]}
                self.blocks.bind(block.name, name, arrays | self._caches(block))
            self._steps[name] = {**shared, "result": pair[len(blocks) % 2]}

    def _bind_pruned(self, blocks: Sequence[Block]) -> None:
        """Rows, tables and indices go from block to block; some blocks leave them as they are."""
        prompt: dict[str, Array] = {"visual_rows": np.zeros((1, self.plan.visual_tokens), np.int32)}
        prompt["last"] = np.zeros(1, np.int32)
        step = {name: np.zeros(1, np.int32) for name in ("position", "pruned")}
        for name, further in (("prefill", prompt), ("decode", step)):
            first = blocks[0].function(name)
            tables = {key: _empty(first, key) for key in ("hidden", "cos", "sin")}
            given = now = tables | further
            for block in blocks:
                function = block.function(name)
                made = {
                    t.name: _empty(function, t.name)
                    for t in function.outputs
                    if not t.name.startswith("present_")
                }
                self.blocks.bind(block.name, name, now | made | self._caches(block))
                now = now | {key.removesuffix("_out"): array for key, array in made.items()}
            self._steps[name] = {**given, "result": now["hidden"]}

    def _caches(self, block: Block) -> dict[str, Array]:
        """The caches of a block's layers by the names of its inputs and outputs."""
        found = {}
        for layer in range(*block.pieces):
            for offset, part in enumerate(("key", "value")):
                name = f"{part}_{layer - block.pieces[0]}"
                cache = self.cache[2 * layer + offset]
                found[f"past_{name}"] = found[f"present_{name}"] = cache
        return found


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


def _empty(function: Function, name: str) -> Array:
    spec = next(t for t in (*function.inputs, *function.outputs) if t.name == name)
    return np.zeros(spec.shape, np.int32 if spec.dtype == "i32" else np.float32)


def _reused(array: Array | None, needed: set[int], function: Function, name: str) -> Array:
    """The array if it is one for this tensor and not needed any more, else a new one."""
    made = _empty(function, name)
    if array is None or id(array) in needed:
        return made
    return array if (array.shape, array.dtype) == (made.shape, made.dtype) else made


def _marks(rows: Array, positions: Array) -> list[int]:
    """A number for each row and its position; equal ones have the same, others hardly ever."""
    return [hash((row.tobytes(), int(at))) for row, at in zip(rows, positions, strict=True)]


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e3
