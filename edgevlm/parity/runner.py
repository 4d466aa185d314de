"""The engine's side of `verify`: each block opened once, each call compared with PyTorch.

The chain of hidden states is the engine's own; every call of a block is repeated by the same block
in PyTorch on the same inputs, with a cache of its own; where the engine's cache is rounded, or its
weights are, with a copy of the engine's. A block is loaded, runs all prefill chunks and decode
steps, and is unloaded, so memory stays at one block whatever the size of the model. It is one
module because each stage goes on with what the one before gave, and all compare in the same way.

Where `reduce` keeps other tokens than PyTorch, and PyTorch itself would with inputs that differ by
rounding alone, the tokens that both keep are compared. Where tokens merge inside a rounded encoder,
the place of each patch is compared, and what PyTorch itself has in float16 is accepted: which
tokens merge hangs on rounding there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import SIGNALS, Block, Function
from edgevlm.graphs.blocks import build
from edgevlm.graphs.merging import merges
from edgevlm.models.family import ModelParts
from edgevlm.planning.vlm import Planned
from edgevlm.quantization.schemes import Threshold
from edgevlm.registry import ENGINES, engine_for
from edgevlm.runtimes.loops.sequence import (
    PromptRows,
    Visual,
    assemble,
    causal_mask,
    load_table,
    load_tokenizer,
    prompt_state,
    rotary_tables,
)
from edgevlm.runtimes.residency.memory import return_freed

NOISE, TRIALS = 2.0**-22, 8  # of the test whether a choice of tokens hangs on rounding
HALF_NOISE, HALF_MARGIN_DB = 2.0**-11, 3.0  # of merging in float16
QUESTION = "What is in this picture?"
# Views whose encoder calls are compared with PyTorch; all views go through the engine.
COMPARED_VIEWS = 2

Array = NDArray[Any]


@dataclass(frozen=True)
class BlockParity:
    """One function: rel_error of its worst call, psnr_db over all calls.

    `half_psnr_db` is what PyTorch has in float16 at worst, where tokens merge in the encoder.
    """

    name: str
    function: str
    rel_error: float
    psnr_db: float | None
    ok: bool
    half_psnr_db: float | None = None


def difference(a: Array, b: Array) -> tuple[float, float | None]:
    """rel_error and psnr_db of `a` against the reference `b`."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    top = float(np.abs(b).max()) or 1.0
    rmse = float(np.sqrt(np.mean((a - b) ** 2)))
    if not np.isfinite(a).all():
        return float(np.finfo(np.float32).max), 0.0
    return float(np.abs(a - b).max()) / top, 20 * float(np.log10(top / rmse)) if rmse else None


@dataclass
class Runner:
    """The engine's side: each block opened once, each call compared with PyTorch."""

    bundle: Bundle
    planned: Planned
    pieces: ModelParts
    thresholds: Mapping[str, Threshold]  # by stage
    progress: Callable[[str], None]
    engine_name: str | None = None  # None takes the first that runs the target
    worst: dict[tuple[str, str], float] = field(default_factory=dict)  # rel_error of a call
    # By block, function and output: max|b|, sum of squared differences, numbers; over all calls.
    sums: dict[tuple[str, str, int], tuple[float, float, int]] = field(default_factory=dict)
    half: dict[str, float] = field(default_factory=dict)  # psnr_db of PyTorch's float16, by block
    # Whether the choice of `reduce` hangs on rounding; asked only where PyTorch's is another.
    unsettled: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        plan = self.bundle.plan
        name = self.engine_name or engine_for(plan.recipe.target)
        self.engine = ENGINES.load(name).Engine(self.bundle)
        self.tokenizer, self.table = load_tokenizer(self.bundle), load_table(self.bundle)

    def sequence(self, tokens: Array, kept: Array, log_sizes: Array | None = None) -> PromptRows:
        """The prompt's rows for one image or clip."""
        plan = self.bundle.plan
        times = tuple(float(i) for i in range(plan.host.image.frames))
        visual = Visual(tokens, kept, times, float(len(times)), log_sizes)
        return assemble(plan, plan.layout.prompt, self.table, self.tokenizer, QUESTION, [visual], 0)

    def reduce(self, pixels: Array) -> list[Array]:
        """Visual tokens, their positions, and their logarithms of sizes where there are."""
        return self._reduce(self._vision(pixels))

    def run(self, reduced: list[Array], tokens: tuple[int, ...]) -> Array:
        """Logits [steps, V] of the engine, fed with the reference's tokens."""
        piece = self.sequence(*(array[0] for array in reduced))
        rows = [np.array(self.table[t]) for t in tokens[:-1]]
        positions = piece.positions[-1] + 1 + np.arange(len(rows), dtype=np.int32)
        if self.bundle.plan.host.kv.gone:
            return self._head(self._pruned(piece, rows, positions))
        calls = [
            *self._chunks(piece),
            *self._check(rows, positions, len(piece.rows)),
            *(
                _Call("decode", len(piece.rows) + i, 1, row[None], positions[i : i + 1])
                for i, row in enumerate(rows)
            ),
        ]
        for block in self.bundle.plan.stage("decoder"):
            calls = self._decoder(block, calls, piece.bias)
        checked = [call.rows for call in calls if call.function == "check"]
        calls = [call for call in calls if call.function != "check"]
        last = [call for call in calls if call.first + call.count >= len(piece.rows)]
        return self._head(np.stack([call.rows[call.count - 1] for call in last]), checked)

    def parity(self) -> Iterator[BlockParity]:
        """Every function in the plan's order: its worst call, its psnr over all calls."""
        for block in self.bundle.plan.blocks:
            for function in block.functions:
                rel_error = self.worst[block.name, function.name]
                psnr = self._psnr_db(block.name, function.name)
                ok = self.thresholds[block.stage].accepts(rel_error, psnr)
                half = self.half.get(block.name)
                if half is not None and psnr is not None:
                    ok = ok or psnr >= half - HALF_MARGIN_DB
                yield BlockParity(block.name, function.name, rel_error, psnr, ok, half)

    def _psnr_db(self, block: str, function: str) -> float | None:
        """Of the output that differs most; None where none does."""
        found = [
            20 * float(np.log10((top or 1.0) / np.sqrt(squares / count)))
            for (name, call, _), (top, squares, count) in self.sums.items()
            if (name, call) == (block, function) and squares > 0
        ]
        return min(found, default=None)

    def _vision(self, pixels: Array) -> dict[str, Array]:
        """Features and signals of all views, by name."""
        between = [{"pixel_values": view[None]} for view in pixels]
        found: dict[str, list[Array]] = {}
        for block in self.bundle.plan.stage("vision"):
            function, planned = block.functions[0], self._planned(block, "encode")
            with self._open(block) as module:
                for index, view in enumerate(between):
                    given = {t.name: view[t.name] for t in planned.inputs}
                    out = self._call(block, function, given)
                    made = {t.name: out[t.name] for t in function.outputs}
                    if index < COMPARED_VIEWS:
                        theirs = module(*map(torch.from_numpy, given.values()))
                        theirs = list(theirs) if isinstance(theirs, tuple) else [theirs]
                        mine = list(map(torch.from_numpy, made.values()))
                        self._compare(block, function, *self._comparable(block, mine, theirs))
                        self._try_half(block, module, given, theirs)
                    between[index] = view | {k.removesuffix("_out"): v for k, v in made.items()}
                    for name in made.keys() & {"features", *SIGNALS}:
                        found.setdefault(name, []).append(made[name])
        return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}

    def _comparable(
        self, block: Block, mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]
    ) -> tuple[list[Array], list[torch.Tensor]]:
        """Both sides of an encoder's block, by places where it is rounded and tokens merge."""
        names = [t.name.removesuffix("_out") for t in block.functions[0].outputs]
        if not self.thresholds["vision"].exact and "origin" in names:
            mine, theirs = _at_places(names, mine, theirs)
        return [t.float().numpy() for t in mine], list(theirs)

    def _try_half(
        self,
        block: Block,
        module: nn.Module,
        given: Mapping[str, Array],
        exact: Sequence[torch.Tensor],
    ) -> None:
        """How far float16 alone moves a rounded block in which tokens merge."""
        pieces = self.pieces.vision[slice(*block.span)]
        if self.thresholds["vision"].exact or not any(map(merges, pieces)):
            return
        random = np.random.default_rng(0)
        for _ in range(TRIALS):
            with torch.autocast("cpu", dtype=torch.float16):
                out = module(*_near(given, random, HALF_NOISE))
            rounded = out if isinstance(out, tuple) else (out,)
            (mine, *_), (theirs, *_) = self._comparable(block, rounded, exact)
            _, psnr = difference(mine, theirs.numpy())
            if psnr is not None:
                self.half[block.name] = min(psnr, self.half.get(block.name, psnr))

    def _reduce(self, found: dict[str, Array]) -> list[Array]:
        """Outputs of `reduce` in its order."""
        (block,) = self.bundle.plan.stage("reduce")
        function = block.functions[0]
        given = {tensor.name: found[tensor.name] for tensor in function.inputs}
        with self._open(block) as module:
            out = self._call(block, function, given)
            theirs = list(module(*map(torch.from_numpy, given.values())))
        mine = [out[tensor.name] for tensor in function.outputs]
        self.unsettled = partial(_hangs_on_rounding, module, given, mine[1], theirs[1].numpy())
        if not np.array_equal(mine[1], theirs[1]) and self.unsettled():
            both = np.intersect1d(mine[1], theirs[1])
            mine_too = [array[:, np.isin(mine[1][0], both)] for array in mine]
            theirs = [t[:, torch.from_numpy(np.isin(theirs[1][0], both))] for t in theirs]
            self._compare(block, function, mine_too, theirs)
        else:
            self._compare(block, function, mine, theirs)
        return mine

    def _chunks(self, piece: PromptRows) -> list[_Call]:
        chunk, count = self.bundle.plan.host.chunk, len(piece.rows)
        calls = []
        for first in range(0, count, chunk):
            n = min(chunk, count - first)
            rows, positions = piece.rows[first : first + n], piece.positions[first : first + n]
            calls.append(_filled_up("prefill", chunk, first, rows, positions))
        return calls

    def _check(self, rows: list[Array], positions: Array, first: int) -> list[_Call]:
        """The rows that single steps will write again, in one call; as many as it takes."""
        most = self.bundle.plan.host.check
        if not most or first + most > self.bundle.plan.host.kv.tokens:
            return []
        count = min(most, len(rows))
        return [_filled_up("check", most, first, np.stack(rows[:count]), positions[:count])]

    def _pruned(self, piece: PromptRows, rows: list[Array], positions: Array) -> Array:
        """Rows [steps, C] that reach the head: of a prompt in one call, then of single rows."""
        count = len(piece.rows)
        states = [prompt_state(self.bundle.plan, piece)]
        for index, row in enumerate(rows):
            cos, sin = rotary_tables(self.bundle.plan, positions[index : index + 1])
            numbers = np.asarray([count + index], np.int32), np.ones(1, np.int32)
            state = {"hidden": row[None, None], "cos": cos[None], "sin": sin[None]}
            states.append(state | dict(zip(("position", "pruned"), numbers, strict=True)))
        for block in self.bundle.plan.stage("decoder"):
            cache, past = self._empty_caches(block)
            shared = {f"past_{k}": v for k, v in cache.items()}
            shared |= {f"present_{k}": v for k, v in cache.items()}
            with self._open(block) as module:
                for state in states:
                    name = "decode" if "position" in state else "prefill"
                    function, planned = block.function(name), self._planned(block, name)
                    given = [t.name for t in planned.inputs if not t.name.startswith("past_")]
                    made = [t.name for t in planned.outputs if not t.name.startswith("present_")]
                    past = self._past(cache, past)
                    out = self._call(block, function, {n: state[n] for n in given}, shared)
                    theirs = module(*(torch.from_numpy(state[n]) for n in given), *past)
                    past = list(theirs[len(made) :])
                    mine = [*(out[n] for n in made), *cache.values()]
                    self._compare(block, function, mine, list(theirs))
                    state |= {n.removesuffix("_out"): out[n] for n in made}
        return np.stack([state["hidden"][0, 0] for state in states])

    def _planned(self, block: Block, name: str) -> Function:
        """A function with all its inputs: an engine's graph lacks those that nothing reads."""
        return self.planned.plan.block(block.name).function(name)

    def _empty_caches(self, block: Block) -> tuple[dict[str, Array], list[torch.Tensor]]:
        """Caches of a block's layers, for the engine by name and for PyTorch in order."""
        start, stop = block.span
        cache = {
            f"{part}_{layer - start}": np.zeros(self.bundle.plan.host.kv.shape(layer), np.float32)
            for layer in range(start, stop)
            for part in ("key", "value")
        }
        return cache, [torch.zeros(array.shape) for array in cache.values()]

    def _past(self, cache: Mapping[str, Array], own: list[torch.Tensor]) -> list[torch.Tensor]:
        """The cache that PyTorch begins a call with."""
        exact = self.thresholds["decoder"].exact and self.bundle.plan.host.kv.dtype == "f32"
        return own if exact else [torch.from_numpy(array.copy()) for array in cache.values()]

    def _decoder(self, block: Block, calls: list[_Call], bias: Array | None) -> list[_Call]:
        plan = self.bundle.plan
        kv = plan.host.kv
        cache, past = self._empty_caches(block)
        done = []
        with self._open(block) as module:
            for call in calls:
                cos, sin = rotary_tables(plan, call.positions)
                given = {
                    "hidden": call.rows[None],
                    "cos": cos[None],
                    "sin": sin[None],
                    "mask": causal_mask(call.first, len(call.rows), kv.tokens),
                    "position": np.asarray([call.first], np.int32),
                }
                if bias is not None:
                    wide = np.pad(bias, (0, kv.tokens - len(bias)))
                    given["bias"] = wide[None, None, None]
                function = block.function(call.function)
                shared = {f"past_{k}": v for k, v in cache.items()}
                shared |= {f"present_{k}": v for k, v in cache.items()}
                past = self._past(cache, past)
                out = self._call(block, function, given, shared)["hidden_out"]
                expected, *past = module(*map(torch.from_numpy, given.values()), *past)
                end = call.first + call.count
                mine = [out[:, : call.count], *(v[:, :, :end] for v in cache.values())]
                theirs = [expected[:, : call.count], *(p[:, :, :end] for p in past)]
                self._compare(block, function, mine, theirs)
                done.append(_Call(call.function, call.first, call.count, out[0], call.positions))
        return done

    def _head(self, hidden: Array, checked: Sequence[Array] = ()) -> Array:
        logits = []
        for block in self.bundle.plan.stage("head"):
            part = []
            with self._open(block) as module:
                for name, rows in [
                    *(("logits", row[None]) for row in hidden),
                    *(("check", rows) for rows in checked),
                ]:
                    function, given = block.function(name), rows[None]
                    out = self._call(block, function, {"hidden": given})["logits"]
                    self._compare(block, function, [out], [module(torch.from_numpy(given))])
                    if name == "logits":
                        part.append(out[0])
            logits.append(np.stack(part))
        return np.concatenate(logits, axis=1)

    def _open(self, block: Block) -> _Opened:
        self.progress(f"verify {block.name}")
        shape = self.planned.description.shape
        return _Opened(self.engine, block, build(block, self.pieces, self.planned.method, shape))

    def _call(
        self,
        block: Block,
        function: Function,
        given: Mapping[str, Array],
        shared: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(value) for name, value in given.items()}
        arrays |= shared or {}
        for spec in function.outputs:
            dtype = np.int32 if spec.dtype == "i32" else np.float32
            arrays.setdefault(spec.name, np.zeros(spec.shape, dtype))
        self.engine.bind(block.name, function.name, arrays)
        self.engine.run(block.name, function.name)
        self.engine.sync(block.name)
        return arrays

    def _compare(
        self, block: Block, function: Function, mine: list[Array], theirs: list[torch.Tensor]
    ) -> None:
        key = block.name, function.name
        for index, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            rel_error, _ = difference(a, b.numpy())
            self.worst[key] = max(self.worst.get(key, 0.0), rel_error)
            top, squares, count = self.sums.get((*key, index), (0.0, 0.0, 0))
            wide, b64 = np.nan_to_num(np.asarray(a, np.float64)), b.numpy().astype(np.float64)
            squares += float(np.square(wide - b64).sum())
            top = max(top, float(np.abs(b64).max()))
            self.sums[*key, index] = (top, squares, count + b64.size)


def _at_places(names: Sequence[str], *sides: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """What the place of each patch has: rounding merges others, and numbers them otherwise.

    How many patches a token stands for is left where both sides merged the same ones.
    """
    named = [dict(zip(names, side, strict=True)) for side in sides]
    origins = [side.pop("origin")[0] for side in named]
    together = [at[:, None] == at for at in origins]
    alike = (together[0] == together[1]).all(1)
    alike = alike if alike.any() else torch.ones_like(alike)
    for side, at in zip(named, origins, strict=True):
        side["hidden"] = side["hidden"].index_select(1, at)
        if "size" in side:
            side["size"] = side["size"].index_select(1, at)[:, alike]
    return [list(side.values()) for side in named]


def _hangs_on_rounding(
    module: nn.Module, given: Mapping[str, Array], mine: Array, kept: Array
) -> bool:
    """Whether PyTorch itself keeps other tokens when its inputs change by 2^-22 of their size.

    An engine's choice that is less than half as near to PyTorch's `kept` as those are is wrong.
    """
    random, least = np.random.default_rng(0), 1.0
    for _ in range(TRIALS):
        again = module(*_near(given, random, NOISE))[1].numpy()
        least = min(least, float(np.isin(again, kept).mean()))
    return least < 1 and float(np.isin(mine, kept).mean()) >= least / 2


def _near(given: Mapping[str, Array], random: np.random.Generator, noise: float) -> list[Any]:
    """The same inputs, each number changed by at most `noise` of its size; indices as they are."""
    return [
        torch.from_numpy(
            array
            if array.dtype.kind == "i"
            else array * (1 + random.uniform(-1, 1, array.shape) * noise).astype(np.float32)
        )
        for array in given.values()
    ]


@dataclass(frozen=True)
class _Call:
    """One call of a decoder block: `count` of `rows` are real, the first at cache row `first`."""

    function: str
    first: int
    count: int
    rows: Array
    positions: Array


def _filled_up(function: str, size: int, first: int, rows: Array, positions: Array) -> _Call:
    """A call of `size` rows of which these are the first and the others nothing."""
    given, at = np.zeros((size, rows.shape[1]), np.float32), np.zeros(size, np.int32)
    given[: len(rows)], at[: len(rows)] = rows, positions
    return _Call(function, first, len(rows), given, at)


@dataclass(frozen=True)
class _Opened:
    """A block in memory for the length of a `with`; gives the same block in PyTorch."""

    engine: Any
    block: Block
    module: nn.Module

    def __enter__(self) -> nn.Module:
        return_freed()  # what the block before took
        self.engine.load(self.block.name)
        return self.module

    def __exit__(self, *_: object) -> None:
        self.engine.unload(self.block.name)
