"""The stage `decoder` of kind `vlm`: tensors, caches and chaining of its functions.

A host is a `bundle.kinds.vlm.VlmHost`, which imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from edgevlm.bundle.functions import Block, Cache, Chain, Signature, Tensor
from edgevlm.bundle.host import LEVELS, Layout
from edgevlm.bundle.kinds.shared.states import LayerState
from edgevlm.bundle.kinds.shared.vision import passed_on

TABLES = ("cos", "sin")
EMBEDS = "embeds"  # rows of the embedding table beside hidden, where layers read them


def rotary_inputs(ropes: Iterable[int]) -> list[str]:
    """Inputs for some of the rotary tables: those of the first have the bare names."""
    return [f"{name}_{rope}" if rope else name for rope in ropes for name in TABLES]


def layer_inputs(layers: int) -> list[str]:
    """Inputs for what each of a block's layers gets of the second table."""
    return [f"per_layer_{index}" for index in range(layers)]


def new_rows(host: Any, block: Block, rows: int, levels: Sequence[int] = ()) -> Signature:
    """`rows` new tokens, what is added behind layers, and the caches of the block's layers.

    Between layers a row has as many numbers as all its residual streams, `host.residual_streams`.
    Where there is a second table, `embeds` has the tokens' rows of the first, and each layer has an
    input of its own for its part of a row of the second.
    """
    tokens, channels = host.states.tokens, host.embedding.columns
    turned = [
        Tensor(name, "f32", (1, rows, host.ropes[rope].size))
        for rope in sorted({*host.layer_ropes[slice(*block.span)]})
        for name in rotary_inputs([rope])
    ]
    before, behind = (_columns(host, layer) for layer in block.span)
    inputs = [
        Tensor("hidden", "f32", (1, rows, before)),
        *turned[:2],
        Tensor("mask", "f32", (1, 1, rows, tokens)),
        Tensor("position", "i32", (1,)),
        *turned[2:],
    ]
    states = [host.states.of(layer) for layer in range(*block.span)]
    if rows > 1 and any(state.kind == "recurrent" for state in states):
        inputs.append(Tensor("count", "i32", (1,)))
    if host.calibrated:
        inputs.append(Tensor("bias", "f32", (1, 1, 1, tokens)))
    for name, layer in zip(LEVELS, levels, strict=False):
        if layer in range(*block.span):
            inputs.append(Tensor(f"added_{name}", "f32", (1, rows, channels)))
    if host.per_layer is not None:
        start, stop = block.span
        columns = host.per_layer.table.columns // len(host.states.layers)
        inputs.append(Tensor(EMBEDS, "f32", (1, rows, channels)))
        inputs += [Tensor(n, "f32", (1, rows, columns)) for n in layer_inputs(stop - start)]
    outputs, chained = passed_on([Tensor("hidden", "f32", (1, rows, behind))])
    # Causal kernels read no mask, layers without positions no tables, recurrent layers neither.
    unread = ("mask", *(table.name for table in turned))
    if not any(state.rows and state.source is None for state in states):
        unread += ("position", "bias")
    return _with_caches(host, block, inputs, outputs, chained, unread)


def _columns(host: Any, layer: int) -> int:
    """Numbers of a row in front of a layer; the last one is followed by the norm."""
    inside = 0 < layer < len(host.states.layers)
    columns: int = host.embedding.columns * (host.residual_streams if inside else 1)
    return columns


def whole_prompt(host: Any, block: Block) -> Signature:
    """`prefill` of a whole prompt, where visual tokens leave between the layers."""
    start, stop = block.span
    inputs, state = _prompt_state(host, start), _prompt_state(host, stop)
    if host.entering[stop] == host.entering[start]:
        new = ("hidden",) if start else ("hidden", "carried")
        state = [tensor for tensor in state if tensor.name in new]
    if stop == len(host.states.layers):
        state = [Tensor("hidden", "f32", (1, 1, host.embedding.columns))]
    outputs, chained = passed_on(state)
    unread = (*TABLES, "visual_rows", "last", "carried")
    return _with_caches(host, block, inputs, outputs, chained, unread)


def _prompt_state(host: Any, layer: int) -> list[Tensor]:
    """A prompt before a layer, of which some visual tokens are left."""
    visual = host.entering[layer]
    rows = host.chunk - (host.entering[0] - visual)
    state = [
        *_rows(host, rows),
        # A tensor cannot be empty: where all have left there is one row that nobody reads.
        Tensor("visual_rows", "i32", (1, max(1, visual))),
        Tensor("last", "i32", (1,)),
    ]
    if host.carried and layer:
        state.append(Tensor("carried", "f32", (1, rows)))
    elif host.carried == "vision":
        state.append(Tensor("visual_signal", "f32", (1, visual)))
    return state


def cache_kinds(host: Any, block: Block) -> dict[str, str]:
    """The kind of state of each cache of a block, by the cache's output."""
    return {cache.output: state.kind for state, cache, _ in _arrays(host, block)}


def single_row(host: Any, block: Block) -> Signature:
    """`decode` of one row, where visual tokens leave between the layers."""
    inputs = [*_rows(host, 1), Tensor("position", "i32", (1,)), Tensor("pruned", "i32", (1,))]
    outputs, chained = passed_on([Tensor("hidden", "f32", (1, 1, host.embedding.columns))])
    return _with_caches(host, block, inputs, outputs, chained, (*TABLES, "position", "pruned"))


def _rows(host: Any, rows: int) -> list[Tensor]:
    """Hidden rows with their rotary tables."""
    return [
        Tensor("hidden", "f32", (1, rows, host.embedding.columns)),
        *(Tensor(name, "f32", (1, rows, host.rope.size)) for name in TABLES),
    ]


def _with_caches(
    host: Any,
    block: Block,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    chained: Sequence[Chain],
    unread: Sequence[str],
) -> Signature:
    kept = [(cache, shape) for state, cache, shape in _arrays(host, block)]
    past = [Tensor(cache.input, "f32", shape) for cache, shape in kept]
    present = [Tensor(cache.output, "f32", shape) for cache, shape in kept if cache.output]
    caches = tuple(cache for cache, _ in kept)
    return Signature(
        (*inputs, *past), (*outputs, *present), caches, tuple(chained), frozenset(unread)
    )


def _arrays(host: Any, block: Block) -> Iterator[tuple[LayerState, Cache, tuple[int, ...]]]:
    """Each array that the block's layers keep: the layer's state, its cache and its shape."""
    for index, layer in enumerate(range(*block.span)):
        state = host.states.of(layer)
        read = state.source is not None
        # A model's own states are float16, and other blocks cannot read them.
        plain = host.states.form == "states" and state.dtype == "f32"
        plain = plain or read or layer in host.states.read_by_others
        for name, shape in zip(state.names(index), state.shapes, strict=True):
            written = "" if read else f"present_{name}"
            yield state, Cache("" if plain else name, f"past_{name}", written), shape


def most_together(layout: Layout, visual_tokens: int) -> int:
    """Most visual tokens of one image or clip that stand together, with nothing between them."""
    longest = run = 0
    for item in layout.image:
        run = run + item.stop - item.start if item.kind == "visual" else 0
        longest = max(longest, run)
    return min(longest, visual_tokens)
