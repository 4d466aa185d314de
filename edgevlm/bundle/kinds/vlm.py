"""Kind `vlm`: a picture and a question in, text out.

    vision   encode         pixel_values of one view -> features, and signals for methods
    reduce   reduce         features and signals of all views -> the visual tokens that are kept
    decoder  prefill        a chunk of rows -> rows, caches; the whole prompt where visual tokens
                            leave between its layers
             decode         one row
             check          a few rows, for speculative decoding
    head     logits, check  rows -> scores of the words

Shapes: N tokens of a view, P views, K kept tokens, C channels, D head size, T cache rows, S rows of
a call, E width of a signal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgevlm.bundle import checks
from edgevlm.bundle.checks import expect
from edgevlm.bundle.documents import shown
from edgevlm.bundle.functions import Block, Signature, Stage, Tensor
from edgevlm.bundle.host import (
    MASKS,
    Embedding,
    EncoderShape,
    ImageSpec,
    LayerTable,
    Layout,
    Rope,
    StreamSpec,
)
from edgevlm.bundle.kinds.shared import reduce, states
from edgevlm.bundle.kinds.shared.decoder import most_together, new_rows, single_row, whole_prompt
from edgevlm.bundle.kinds.shared.states import States
from edgevlm.bundle.kinds.shared.vision import encode
from edgevlm.bundle.plan import Plan
from edgevlm.recipe import MOST_CHECKED

STAGES = (
    Stage("vision", True, "vision", "blue"),
    Stage("reduce", False, "reduce", "yellow"),
    Stage("decoder", True, "decoder", "orange"),
    Stage("head", True, "head", "sky"),
)
POSITIONS = ("contiguous", "original")
CARRIED = ("", "prompt", "vision")
MOST_FIRST = 2**20  # of the first position: the others, 2^31 at most, follow it
MOST_STREAMS = 16


@dataclass(frozen=True)
class VlmHost:
    """Constants that the program around the graphs needs.

    Attributes:
        image: Preprocessing.
        encoder: Sizes inside the encoder.
        visual_tokens: K, visual tokens per image or clip that reach the language model.
        calibrated: Whether `reduce` says how much attention each visual token gets.
        layout: The sequence of a turn.
        embedding: The table whose rows stand for tokens.
        per_layer: A second table, whose rows go to the layers of the decoder; or None.
        ropes: Rotary tables.
        layer_ropes: Which of them each layer of the decoder has.
        first_position: Rotary position of the first token.
        mask: Who sees whom in a prompt, one of `bundle.host.MASKS`.
        residual_streams: A, copies of a row that go from layer to layer of the decoder, side by
            side: `hidden` has A * C numbers between its blocks; 1 is the row alone.
        states: What each layer of the decoder keeps from call to call.
        entering: Visual tokens among the rows that enter each layer of the decoder, and those that
            come out of the last; empty where none leave.
        carried: What the first decoder block makes a state of that goes with the rows to the
            others, where tokens leave: `prompt`, its rows, or `vision`, a signal that `reduce`
            gives; empty where there is none.
        levels: Layers of the decoder to whose output, at the rows of visual tokens, `prefill` adds
            features of a level of the encoder before its last (DeepStack, arXiv 2406.04334), in
            order: that of `LEVELS[i]` to the layer `levels[i]`; empty where there are none.
        chunk: Rows that a call of `prefill` takes.
        check: Rows that a call of `check` takes; 0 says that there is none.
        positions: `contiguous`, or `original`: visual tokens have the positions of the whole grid.
        vocabulary: Words that the head scores.
        stop_ids: Tokens that end an answer.
        stream: Numbers of a stream of frames; None where the bundle takes none.
    """

    image: ImageSpec
    encoder: EncoderShape
    visual_tokens: int
    calibrated: bool
    layout: Layout
    embedding: Embedding
    per_layer: LayerTable | None
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int, ...]
    first_position: int
    mask: str
    residual_streams: int
    states: States
    entering: tuple[int, ...]
    carried: str
    levels: tuple[int, ...]
    chunk: int
    check: int
    positions: str
    vocabulary: int
    stop_ids: tuple[int, ...]
    stream: StreamSpec | None

    @property
    def tables(self) -> Mapping[str, Embedding]:
        """The embedding table, and the second one where there is one."""
        further = {} if self.per_layer is None else {"per_layer": self.per_layer.table}
        return {"embedding": self.embedding, **further}

    @property
    def row_columns(self) -> int:
        """Numbers of a token before the decoder: its rows of all tables."""
        return sum(table.columns for table in self.tables.values())

    @property
    def rope(self) -> Rope:
        """The first rotary table; the others have as many axes."""
        return self.ropes[0]

    def placed(self, files: Mapping[str, str]) -> VlmHost:
        """The same host with the files of its tables."""
        placed = replace(self, embedding=replace(self.embedding, file=files["embedding"]))
        if self.per_layer is None:
            return placed
        table = replace(self.per_layer.table, file=files["per_layer"])
        return replace(placed, per_layer=replace(self.per_layer, table=table))

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a first turn with one image and an empty question."""
        return self.layout.prompt_tokens(self.visual_tokens)

    @property
    def image_tokens(self) -> int:
        """Tokens of the sequence that one image or clip takes, markers included."""
        return self.layout.image_tokens(self.visual_tokens)


HOST, LOOP, ANSWER = VlmHost, "text", "text"
VlmPlan = Plan[VlmHost]


def spans(host: VlmHost) -> dict[str, int]:
    """How far the spans of each stage's blocks reach, in the order of `STAGES`."""
    reduces = 1 + (host.stream is not None)
    reach = (host.encoder.parts, reduces, len(host.states.layers), host.vocabulary)
    return {stage.name: stop for stage, stop in zip(STAGES, reach, strict=True)}


def functions(host: VlmHost, block: Block) -> tuple[str, ...]:
    """Names of the functions that a block has.

    Layers that add no rows, and that no later layer with rows follows, need the last row of a
    prompt alone: for them it is a row as any other.
    """
    check = ("check",) if host.check else ()
    prefill = ("prefill",) if block.span[0] < host.states.own else ()
    names = {
        "vision": ("encode",),
        "reduce": ("stream",) if block.span[0] else ("reduce",),
        "decoder": (*prefill, "decode", *check),
        "head": ("logits", *check),
    }
    return names[block.stage]


def signature(host: VlmHost, block: Block, function: str) -> Signature:
    """What goes in and out of a function of a block; its stage and span say which block."""
    if block.stage == "vision":
        features = (1, host.encoder.view_tokens, host.embedding.columns)
        result = Tensor("features", "f32", features)
        return encode(host.image, host.encoder, block.span, result)
    if block.stage == "reduce":
        return {"reduce": reduce.clip, "stream": reduce.frame}[function](host)
    if block.stage == "head":
        return _head(host, block, rows={"logits": 1, "check": host.check}[function])
    if not host.entering:
        rows = {"prefill": host.chunk, "decode": 1, "check": host.check}[function]
        return new_rows(host, block, rows, host.levels if function == "prefill" else ())
    return whole_prompt(host, block) if function == "prefill" else single_row(host, block)


def passes(plan: VlmPlan) -> dict[str, tuple[tuple[str, str], ...]]:
    """The orders in which a loop runs functions, again and again: (block, function)."""
    head = [(block.name, "logits") for block in plan.stage("head")]
    decoder, own = [block.name for block in plan.stage("decoder")], writers(plan)
    orders = {
        "encode": tuple((block.name, "encode") for block in plan.stage("vision")),
        "reduce": ((plan.stage("reduce")[0].name, "reduce"),),
        "prefill": tuple((block.name, "prefill") for block in own),
        "decode": (*head, *((name, "decode") for name in decoder)),
    }
    if plan.host.stream:
        orders["stream"] = ((plan.stage("reduce")[1].name, "stream"),)
    if plan.host.check:
        heads = (block.name for block in plan.stage("head"))
        orders["check"] = tuple((name, "check") for name in (*decoder, *heads))
    return orders


def writers(plan: VlmPlan) -> tuple[Block, ...]:
    """Blocks of the decoder up to the last that adds rows to a cache: those with a `prefill`."""
    own = plan.host.states.own
    return tuple(block for block in plan.stage("decoder") if block.span[0] < own)


def facts(plan: VlmPlan) -> dict[str, Any]:
    """What `plan`, `export` and `inspect` say of such a bundle, by JSON key."""
    return {
        "visual_tokens": plan.host.visual_tokens,
        "context_tokens": plan.host.states.tokens,
        "kv_bytes": plan.host.states.bytes,
    }


def turn_bytes(host: VlmHost) -> int:
    """Bytes that a turn allocates beside its blocks: pixels, rows, levels of a picture, twice."""
    rows = host.states.tokens + len(host.levels) * host.visual_tokens
    return 2 * (host.image.pixel_bytes + 4 * rows * host.row_columns)


def outline(host: VlmHost) -> tuple[object, ...]:
    """The numbers that parity feeds the functions by."""
    return host.layout, host.chunk, host.states, host.mask, host.layer_ropes, host.first_position


def check(plan: VlmPlan) -> None:
    """Refuse constants that do not fit each other or their files.

    Raises:
        BundleError: One line that names the field.
    """
    host = plan.host
    numbers = {"visual_tokens": host.visual_tokens, "chunk": host.chunk}
    checks.numbers("host", numbers | {"vocabulary": host.vocabulary})
    checks.choice("host.positions", host.positions, POSITIONS)
    checks.choice("host.mask", host.mask, MASKS)
    first = host.first_position
    expect(0 <= first <= MOST_FIRST, f"host.first_position is {shown(first)}, expected 0 to 2^20")
    carried = f"host.carried is {shown(host.carried)}, expected prompt, vision or nothing"
    expect(host.carried in CARRIED, carried)
    streams, wanted = host.residual_streams, f"expected 1 to {MOST_STREAMS}"
    expect(1 <= streams <= MOST_STREAMS, f"host.residual_streams is {shown(streams)}, {wanted}")
    alone = streams == 1 or not (host.entering or host.levels)
    expect(alone, "host.residual_streams: no block has several where tokens leave or levels come")
    checks.image(host.image)
    checks.encoder(host.encoder)
    checks.embedding(host.embedding, plan.files)
    states.check(host.states)
    if host.per_layer is not None:
        checks.layer_table(host.per_layer, len(host.states.layers), plan.files)
        expect(not host.entering, "host.per_layer: no decoder block takes it where tokens leave")
    checks.ropes(host.ropes, host.layer_ropes, [state.head_size for state in host.states.each])
    checks.layout(host.layout, host.embedding.rows, host.image.frames, host.rope.axes)
    expect(
        host.rope.axes == 1 or host.positions == "original",
        f"host.positions is '{host.positions}', expected 'original' where a position has"
        f" {host.rope.axes} axes",
    )
    total = host.image.views * host.encoder.view_tokens
    checks.places(host.layout, total, host.visual_tokens, host.states.tokens)
    expect(host.vocabulary <= host.embedding.rows, "host.vocabulary is more than embedding.rows")
    stops = list(host.stop_ids)
    known = stops == sorted({*stops}) and all(0 <= stop < host.vocabulary for stop in stops)
    expect(known, f"host.stop_ids is {shown(str(stops))}, expected words, each once, ascending")
    _check_calls(host)
    reduce.check(host)
    checks.levels(host.levels, host.encoder, host.embedding.columns, len(host.states.layers))
    expect(
        not (host.levels and host.entering), "host.levels: no decoder block adds where tokens leave"
    )
    own = host.states.own
    for block in plan.stage("decoder"):
        apart = own == len(host.states.layers) or not block.span[0] < own < block.span[1]
        expect(apart, f"{block.name} has layers with a cache and layers that follow the last one")
    expect(own == len(host.states.layers) or not host.entering, "host.entering: layers read caches")
    for block in plan.blocks:
        shares = ("", "embedding") if block.stage == "head" else ("",)
        expect(block.shares in shares, f"{block.name}.shares is {shown(block.shares)}")
    kept = [site.tokens_out for site in plan.sites if site.site == "tokens"]
    expect(
        kept == [host.visual_tokens],
        f"sites has {shown(str(kept))} tokens_out at site 'tokens', host.visual_tokens is"
        f" {host.visual_tokens}",
    )


def _check_calls(host: VlmHost) -> None:
    """The rows of calls, and the visual tokens that leave between layers."""
    tokens, layers = host.states.tokens, len(host.states.layers)
    expect(host.chunk <= tokens, f"host.chunk {host.chunk} is more than states.tokens {tokens}")
    expect(
        host.check in (0, *range(2, MOST_CHECKED + 1))
        and host.check <= tokens
        and not (host.check and (host.entering or host.states.recurrent)),
        f"host.check is {shown(host.check)}, expected 0 or 2 to {MOST_CHECKED} rows of the cache",
    )
    expect(
        not (host.calibrated and host.states.recurrent),
        "host.calibrated: recurrent layers do not weigh tokens",
    )
    if host.mask != "causal":
        seen = host.visual_tokens
        if host.mask == "pictures":
            seen = most_together(host.layout, seen)
        whole = host.chunk >= seen and not host.entering and not host.calibrated
        expect(whole, f"host.mask is '{host.mask}', and a picture does not fit host.chunk rows")
    rows = {layer: state.rows for layer, state in enumerate(host.states.each) if state.rows}
    if not host.entering:
        expect({*rows.values()} <= {tokens}, f"host.states has layers of fewer than {tokens} rows")
        expect(not host.carried, "host.carried is a state of rows that leave, none do")
        return
    full = rows.get(0, tokens)  # every token reaches the first layer
    expect(full == tokens, f"host.states.tokens is {tokens}, and layer 0 has {full} rows")
    entering = list(host.entering)
    good = len(entering) == layers + 1 and entering == sorted(entering, reverse=True)
    good = good and entering[0] == host.visual_tokens and entering[-1] >= 0
    good = good and host.chunk > entering[0] - entering[-1]
    # Tokens leave before a layer writes its rows, or behind it.
    good = good and all(
        entering[layer + 1] <= entering[0] - (tokens - count) <= entering[layer]
        for layer, count in rows.items()
    )
    expect(good, f"host.entering is {shown(str(entering))} for {layers} layers")
    expect(len(host.ropes) == 1, "host.ropes has several tables, expected one where tokens leave")
    expect(not host.calibrated, "host.calibrated: no decoder block takes it where tokens leave")


def _head(host: VlmHost, block: Block, rows: int) -> Signature:
    hidden = Tensor("hidden", "f32", (1, rows, host.embedding.columns))
    logits = Tensor("logits", "f32", (rows, block.span[1] - block.span[0]))
    return Signature((hidden,), (logits,))
