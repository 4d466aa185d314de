"""What the layers of a decoder keep from call to call: a state a layer.

    rows        keys and values [1, heads, rows, head size]; each token adds a row
    recurrent   arrays of any shape; each token changes all of them

A layer may read the rows of an earlier one, its `source`, and has none of its own then. Equal
states stand once in a manifest (`States.kinds`), and each layer says which is its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from edgevlm.bundle.checks import MOST_LAYERS, MOST_SIZE, choice, expect, numbers
from edgevlm.bundle.documents import shown
from edgevlm.bundle.functions import DTYPES

KINDS = ("rows", "recurrent")
FORMS = ("shared_buffer", "states")
# Names of the arrays of a layer with rows; those of a recurrent one are counted.
ROWS = ("key", "value")
MOST_BYTES = 64 * 10**9
# Most arrays of a recurrent layer, and dimensions of each.
MOST_ARRAYS, MOST_DIMENSIONS = 8, 5


@dataclass(frozen=True)
class LayerState:
    """The state of one layer.

    Attributes:
        kind: One of `KINDS`.
        shapes: Of keys and values, or of the arrays of a recurrent layer.
        dtype: What the numbers are kept in, `f32` or `f16`; functions take them as float32.
        source: The earlier layer whose rows it reads, having none of its own; None has its own.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    source: int | None = None

    @property
    def rows(self) -> int:
        """Tokens that it has room for; 0 where no token has a row."""
        return self.shapes[0][2] if self.kind == "rows" else 0

    @property
    def head_size(self) -> int:
        """Numbers of a head; 0 where there are no rows."""
        return self.shapes[0][3] if self.kind == "rows" else 0

    @property
    def numbers(self) -> int:
        """Numbers of its own arrays."""
        return 0 if self.source is not None else sum(map(math.prod, self.shapes))

    @property
    def bytes(self) -> int:
        """Bytes of its own arrays."""
        return self.numbers * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes that a token adds."""
        return self.bytes // self.rows if self.rows else 0

    def names(self, layer: int) -> tuple[str, ...]:
        """Names of its arrays in functions.

        Args:
            layer: Where the layer stands in its block.
        """
        parts = ROWS if self.kind == "rows" else (self.kind,) * len(self.shapes)
        counted = "" if self.kind == "rows" else "_{}"
        return tuple(f"{part}_{layer}" + counted.format(index) for index, part in enumerate(parts))

    def with_rows(self, rows: int) -> LayerState:
        """The same with room for another number of tokens."""
        shapes = tuple((*shape[:2], rows, *shape[3:]) for shape in self.shapes)
        return replace(self, shapes=shapes) if self.kind == "rows" else self


@dataclass(frozen=True)
class CacheSpec:
    """What a family says of a layer with keys and values, whatever the context.

    With a `source` it reads those of an earlier layer, and has none of its own.
    """

    heads: int
    head_size: int
    source: int | None = None

    def state(self, rows: int, dtype: str) -> LayerState:
        """The state of a layer with room for `rows` tokens, kept in `dtype`."""
        shape = (1, self.heads, rows, self.head_size)
        return LayerState("rows", (shape, shape), dtype, self.source)


@dataclass(frozen=True)
class RecurrentSpec:
    """What a family says of a recurrent layer: arrays of these shapes."""

    shapes: tuple[tuple[int, ...], ...]

    def state(self, rows: int, dtype: str) -> LayerState:
        """The state of a layer; no token adds a row.

        It is kept in float32, whatever a target keeps rows in: each token changes all of it, so
        that what rounding takes away would add up.
        """
        return LayerState("recurrent", self.shapes, "f32")


@dataclass(frozen=True)
class States:
    """The states of all layers.

    Attributes:
        form: `shared_buffer`: input and output of a `Cache` are one buffer, written in place.
            `states`: what is kept in float16 is a state of the model, called by the cache's name,
            which the runtime keeps; what is kept in float32 is a plain input and output.
        tokens: T, the context: rows of a layer that every token reaches. Where visual tokens leave
            inside the decoder, later layers have fewer.
        kinds: The states that differ, each once.
        layers: Which of them each layer has, in order.
    """

    form: str
    tokens: int
    kinds: tuple[LayerState, ...]
    layers: tuple[int, ...]

    @classmethod
    def made(cls, form: str, tokens: int, states: Iterable[LayerState]) -> States:
        """The states of layers, in order."""
        each = tuple(states)
        kinds = tuple(dict.fromkeys(each))
        return cls(form, tokens, kinds, tuple(kinds.index(state) for state in each))

    def of(self, layer: int) -> LayerState:
        """The state of a layer."""
        return self.kinds[self.layers[layer]]

    @property
    def each(self) -> tuple[LayerState, ...]:
        """The state of each layer, in order."""
        return tuple(map(self.of, range(len(self.layers))))

    @property
    def read_by_others(self) -> frozenset[int]:
        """Layers whose rows later layers read."""
        return frozenset(state.source for state in self.each if state.source is not None)

    @property
    def own(self) -> int:
        """Layers up to the last that has a state of its own; those that follow add no rows."""
        has = [layer for layer, state in enumerate(self.each) if state.source is None]
        return has[-1] + 1 if has else 0

    @property
    def bytes(self) -> int:
        """Bytes of all states."""
        return sum(state.bytes for state in self.each)

    @property
    def row_bytes(self) -> int:
        """Bytes that a token adds to all of them."""
        return sum(state.row_bytes for state in self.each)

    @property
    def recurrent(self) -> bool:
        """Whether some layers are recurrent: what a token does to their state cannot be undone."""
        return any(state.kind == "recurrent" for state in self.kinds)

    @property
    def exact(self) -> bool:
        """Whether all are kept in float32."""
        return all(state.dtype == "f32" for state in self.kinds)


def check(states: States) -> None:
    """Refuse states that cannot be.

    Raises:
        BundleError: One line that names the field.
    """
    numbers("host.states", {"tokens": states.tokens})
    choice("host.states.form", states.form, FORMS)
    layers = len(states.layers)
    expect(1 <= layers <= MOST_LAYERS, f"host.states.layers has {layers} layers")
    known = all(0 <= index < len(states.kinds) for index in states.layers)
    said = shown(str(list(states.layers)))
    expect(known, f"host.states.layers is {said} for {len(states.kinds)} kinds")
    count, used = len(states.kinds), {*states.layers}
    each = f"host.states has {count} kinds, of which layers have {len(used)}, expected all"
    expect(len(used) == count, each)
    expect(len({*states.kinds}) == count, "host.states.kinds has a kind twice")
    for index, state in enumerate(states.kinds):
        _check_state(state, states.tokens, f"host.states.kinds[{index}]")
    for layer, state in enumerate(states.each):
        _check_source(states, layer, state)
    expect(states.bytes <= MOST_BYTES, f"host.states needs {states.bytes} bytes")


def _check_state(state: LayerState, tokens: int, where: str) -> None:
    choice(f"{where}.kind", state.kind, KINDS)
    choice(f"{where}.dtype", state.dtype, ("f32", "f16"))
    arrays = shown(str([list(shape) for shape in state.shapes]))
    good = 1 <= len(state.shapes) <= MOST_ARRAYS
    for shape in state.shapes:
        good = good and 1 <= len(shape) <= MOST_DIMENSIONS
        good = good and all(1 <= size <= MOST_SIZE for size in shape)
    expect(good, f"{where}.shapes is {arrays}, expected a few arrays of 1 to 2^31 numbers a side")
    if state.kind == "recurrent":
        kept = f"{where}.dtype is {state.dtype}, expected f32 of what each token changes"
        expect(state.dtype == "f32", f"{kept}; export the model again")
    if state.kind == "rows":
        keys = state.shapes[0]
        good = len(state.shapes) == len(ROWS) and len(keys) == 4 and keys == state.shapes[1]
        good = good and keys[0] == 1 and keys[2] <= tokens
        wanted = f"keys and values [1, heads, rows, head size], at most {tokens} rows"
        expect(good, f"{where}.shapes is {arrays}, expected {wanted}")


def _check_source(states: States, layer: int, state: LayerState) -> None:
    """Check that a layer without rows of its own reads those of an earlier one that has."""
    if state.source is None:
        return
    good = 0 <= state.source < layer and state.kind == "rows"
    good = good and states.of(state.source) == replace(state, source=None)
    expect(good, f"host.states: layer {layer} has the source {state.source}, expected its like")
