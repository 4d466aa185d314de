"""Checks of the host constants that kinds of bundles share.

A manifest is untrusted: sizes are bounded before anything is computed from them, and every error is
one line that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgevlm.bundle.documents import shown
from edgevlm.bundle.host import (
    LEVELS,
    MOST_CANDIDATES,
    SIDES,
    SIGNALS,
    Embedding,
    EncoderShape,
    ImageSpec,
    LayerTable,
    Layout,
    LayoutItem,
    Rope,
)
from edgevlm.bundle.packed import PACKINGS
from edgevlm.bundle.plan import MANIFEST, FileEntry
from edgevlm.errors import BundleError
from edgevlm.registry import METHODS

# Most elements of a tensor: 2^31 are 8 GB of float32.
MOST_SIZE = 2**31
MOST_LAYERS = 2**10
# Most of a mean or a deviation of pixels; its reciprocal is the least deviation. A normalized pixel
# is then at most 1e12, far below what float32 ends at.
MOST_PIXEL = 1e6
MOST_AXES = 8
MOST_PLACE = 2**20
MOST_RATE = 2**10  # positions of a second of a clip
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
ITEMS = {
    "prompt": ("ids", "image", "user_text", "text"), "turn": ("ids", "user_text", "text"),
    "text": ("ids", "user_text", "text"),
    "image": ("ids", "visual", "timestamp", "seconds", "duration", "number", "text"),
    "between": ("ids", "text"),
    "prompt_system": ("ids", "system_text", "text"), "text_system": ("ids", "system_text", "text"),
    "text_text": ("ids", "text"), "text_image": ("ids", "text"), "image_end": ("ids", "text"),
}  # fmt: skip


def expect(good: bool, message: str) -> None:
    """Refuse the manifest unless `good`.

    Raises:
        BundleError: With the message.
    """
    if not good:
        raise BundleError(f"{MANIFEST}: {message}")


def numbers(where: str, values: Mapping[str, int]) -> None:
    """Check sizes: each is from 1 to 2^31."""
    for name, value in values.items():
        expect(1 <= value <= MOST_SIZE, f"{where}.{name} is {shown(value)}, expected 1 to 2^31")


def choice(where: str, value: str, known: Sequence[str]) -> None:
    """Check a name of a closed set."""
    expect(value in known, f"{where} is {shown(value)}, known: {', '.join(known)}")


def image(spec: ImageSpec) -> None:
    """Check the constants of preprocessing."""
    sizes = ("height", "width", "rows", "columns", "frames", "depth")
    numbers("host.image", {name: getattr(spec, name) for name in sizes})
    numbers("host.image", {"views": spec.views})  # divides by the depth
    choice("host.image.global_view", spec.global_view, ("first", "last"))
    choice("host.image.resample", spec.resample, FILTERS)
    choice("host.image.fit", spec.fit, ("stretch", "crop"))
    square = spec.rows * spec.columns == 1 and spec.width == spec.height
    expect(spec.fit == "stretch" or square, "host.image.fit is 'crop', expected one square view")
    good = spec.shorter == 0 or (spec.fit == "crop" and spec.width <= spec.shorter <= MOST_SIZE)
    expect(good, f"host.image.shorter is {spec.shorter}, expected 0, or a view's side and more")
    expect(
        spec.frames == 1 or spec.rows * spec.columns == 1,
        "host.image has frames and tiles, expected one of them",
    )
    expect(
        spec.depth <= spec.frames,
        f"host.image has views of {spec.depth} frames, and a picture or clip has {spec.frames}",
    )
    choice("host.image.picker", spec.picker, ("", *METHODS.names("input")))
    few, many = (spec.frames, MOST_CANDIDATES) if spec.picker else (0, 0)
    good = few <= spec.candidates <= many and (spec.frames > 1 or not spec.picker)
    expect(good, f"host.image.candidates is {spec.candidates}, expected {few} to {many}")
    for name, least in (("mean", -MOST_PIXEL), ("std", 1 / MOST_PIXEL)):
        values = getattr(spec, name)
        expect(
            all(least <= value <= MOST_PIXEL for value in values),
            f"host.image.{name} is {list(values)}, expected {least:g} to {MOST_PIXEL:g}",
        )


def encoder(shape: EncoderShape) -> None:
    """Check the sizes inside an image encoder."""
    numbers("host.encoder", {"width": shape.width, "view_tokens": shape.view_tokens})
    tokens = shape.tokens
    good = 1 <= len(tokens) <= MOST_LAYERS and all(1 <= n <= MOST_SIZE for n in tokens)
    good = good and list(tokens) == sorted(tokens, reverse=True)
    expect(
        good, f"host.encoder.tokens is {shown(str(list(tokens)))}, expected a list that never rises"
    )
    names = [signal.name for signal in shape.signals]
    expect(len(set(names)) == len(names), "host.encoder.signals has two signals of one name")
    for signal in shape.signals:
        known = signal.name in (*SIGNALS, *LEVELS) and 0 <= signal.width <= MOST_SIZE
        known = known and 0 <= signal.part < shape.parts
        expect(known, f"host.encoder.signals has {shown(signal.name)} of part {signal.part}")


def embedding(table: Embedding, files: Sequence[FileEntry], where: str = "host.embedding") -> None:
    """Check an embedding table and the size of its file."""
    numbers(where, {"rows": table.rows, "columns": table.columns})
    choice(f"{where}.dtype", table.dtype, ("f32", *PACKINGS))
    expect(table.scale > 0, f"{where}.scale is {shown(table.scale)}, expected more than 0")
    entry = next((f for f in files if f.path == table.file), None)
    expect(entry is not None, f"{shown(table.file)} is used but not listed in files")
    assert entry is not None
    expect(
        entry.bytes == table.bytes,
        f"{where} needs {table.bytes} bytes, '{entry.path}' has {entry.bytes}",
    )


def layer_table(table: LayerTable, layers: int, files: Sequence[FileEntry]) -> None:
    """Check the table of what each of the decoder's layers gets of a token."""
    embedding(table.table, files, "host.per_layer.table")
    rows, columns, row = table.table.rows, table.table.columns, table.visual_row
    expect(0 <= row < rows, f"host.per_layer.visual_row is {shown(row)} of {rows} rows")
    expect(
        columns % layers == 0,
        f"host.per_layer.table has {columns} columns, expected as many for each of {layers} layers",
    )


def ropes(tables: Sequence[Rope], layers: Sequence[int], head_sizes: Sequence[int]) -> None:
    """Check the rotary tables, and which each layer has.

    Args:
        tables: The tables.
        layers: Which of them each layer of the decoder has.
        head_sizes: Numbers of a head of each layer; 0 where it has no heads.
    """
    expect(bool(tables), "host.ropes is empty, expected a table at least")
    for index, table in enumerate(tables):
        _rope(table, f"host.ropes[{index}]")
        axes = f"host.ropes[{index}] has {table.axes} axes, and host.ropes[0] {tables[0].axes}"
        expect(table.axes == tables[0].axes, axes)
    count = len(head_sizes)
    known = len(layers) == count and all(0 <= index < len(tables) for index in layers)
    said = shown(str(list(layers)))
    expect(known, f"host.layer_ropes is {said} for {count} layers and {len(tables)} tables")
    used = len({*layers})
    expect(used == len(tables), f"host.ropes has {len(tables)} tables, of which layers have {used}")
    for layer, (index, size) in enumerate(zip(layers, head_sizes, strict=True)):
        expect(
            size == 0 or tables[index].size <= size,
            f"host.ropes[{index}] has {tables[index].size // 2} frequencies, expected at most half"
            f" of the head size {size} of layer {layer}",
        )


def _rope(table: Rope, where: str) -> None:
    count, sections = len(table.inverse_frequencies), table.sections
    expect(1 <= count <= MOST_SIZE, f"{where} has no frequencies")
    if sections:
        good = 1 < len(sections) <= MOST_AXES and min(sections) > 0 and sum(sections) == count
        expect(
            good,
            f"{where}.sections is {shown(str(list(sections)))}, expected two or more that make"
            f" the {count} frequencies",
        )
    expect(
        bool(sections) or not table.interleaved, f"{where} is interleaved, expected sections too"
    )


def levels(layers: Sequence[int], shape: EncoderShape, columns: int, most: int) -> None:
    """Check the layers that get features of further levels, and what the encoder gives of them.

    Args:
        layers: Layers of the decoder.
        shape: Sizes inside the encoder.
        columns: Width of the decoder.
        most: Its layers.
    """
    good = list(layers) == sorted({*layers}) and all(0 <= layer < most for layer in layers)
    good = good and len(layers) <= len(LEVELS)
    expect(good, f"host.levels is {shown(str(list(layers)))} for {most} layers")
    given = {s.name: s.width for s in shape.signals if s.name in LEVELS}
    wanted = dict.fromkeys(LEVELS[: len(layers)], columns)
    expect(
        given == wanted,
        f"host.encoder.signals has the levels {shown(str(given))}, expected {wanted}",
    )


def layout(sequence: Layout, rows: int, frames: int, axes: int) -> None:
    """Check the sequence of a turn.

    Args:
        sequence: The sequence.
        rows: Rows of the embedding table.
        frames: Frames of a clip.
        axes: Numbers of a rotary position.
    """
    for name, kinds in ITEMS.items():
        for index, item in enumerate(getattr(sequence, name)):
            where = f"host.layout.{name}[{index}]"
            _item(item, kinds, rows, frames, where)
            _places(item, axes, rows, where)


def _item(item: LayoutItem, kinds: tuple[str, ...], rows: int, frames: int, where: str) -> None:
    known = ", ".join(kinds)
    expect(item.kind in kinds, f"{where}.kind is {shown(item.kind)}, known here: {known}")
    expect(all(0 <= i < rows for i in item.ids), f"{where} has an id outside the embedding table")
    choice(f"{where}.trim", item.trim, SIDES)
    choice(f"{where}.strip", item.strip, SIDES)
    if item.kind == "visual":
        inside = 0 <= item.start <= item.stop <= MOST_SIZE
        expect(inside, f"{where} has the range {shown(item.start)}:{shown(item.stop)}")
    if item.kind == "timestamp":
        inside = 0 <= item.start < frames
        expect(inside, f"{where}.start is {shown(item.start)} of {frames} frames")
    if item.kind == "seconds":
        inside = 0 <= item.start < item.stop <= frames
        reach = f"{shown(item.start)}:{shown(item.stop)}"
        expect(inside, f"{where} has the range {reach} of {frames} frames")


def _places(item: LayoutItem, axes: int, rows: int, where: str) -> None:
    """Check the places of tokens, which visual ones have where positions have several axes."""
    wanted = item.kind == "visual" and axes > 1
    if not item.places and not wanted:
        none = not (item.span or item.joins or item.per_second)
        expect(none, f"{where} has a span or joins, and no places")
        return
    rate = item.per_second
    expect(0 <= rate <= MOST_RATE, f"{where}.per_second is {rate:g}, expected 0 to {MOST_RATE}")
    tokens = len(item.ids) if item.kind == "ids" else item.stop - item.start
    sides = [len(values) for values in item.places]
    good = item.kind in ("ids", "visual") and len(sides) == axes > 1
    expect(
        good and math.prod(sides) == tokens,
        f"{where}.places is of {shown(str(sides))}, expected {axes} axes of {tokens} tokens",
    )
    inside = all(-1 <= n <= MOST_PLACE for values in item.places for n in values)
    expect(inside, f"{where}.places has one outside of -1 to 2^20")
    expect(0 <= item.span <= MOST_PLACE, f"{where}.span is {shown(item.span)}, expected 0 to 2^20")
    expect(all(0 <= i < rows for i in item.joins), f"{where}.joins has an id outside the table")


def places(sequence: Layout, total: int, visual_tokens: int, context: int) -> None:
    """Check that a turn has one picture, of all `total` places, and one question, in the context.

    With a system text it has that once, too.

    Args:
        sequence: Its layout.
        total: Places of visual tokens of all views.
        visual_tokens: Those that are kept.
        context: Rows of the cache.
    """
    kinds_of = {
        "prompt": ("image", "user_text"), "text": ("user_text",), "turn": ("user_text",),
        "prompt_system": ("system_text",), "text_system": ("system_text",),
    }  # fmt: skip
    for name, kinds in kinds_of.items():
        items = getattr(sequence, name)
        if name != "prompt" and not items:  # the model has no such turns
            continue
        for kind in kinds:
            count = sum(item.kind == kind for item in items)
            expect(count == 1, f"host.layout.{name} has {count} items '{kind}', expected one")
        fixed = sum(len(item.ids) for item in items)
        expect(fixed <= context, f"host.layout.{name} has {fixed} tokens of {context}")
    both = bool(sequence.prompt_system) == bool(sequence.text_system) <= bool(sequence.text)
    expect(both, "host.layout has prompt_system or text_system without the other, or without text")
    order = [item.kind for item in sequence.prompt if item.kind in ("image", "user_text")]
    good = not sequence.mixes or (bool(sequence.text) and order == ["image", "user_text"])
    expect(good, "host.layout.mixes needs text, and a prompt with the picture before the question")
    at = 0
    for item in sequence.image:
        if item.kind == "visual":
            expect(item.start == at, f"host.layout.image has the place {item.start}, expected {at}")
            at = item.stop
    expect(at == total, f"host.layout.image has {at} places, expected {total}")
    tokens = sequence.prompt_tokens(visual_tokens)
    expect(tokens <= context, f"host.layout.prompt has {tokens} tokens of {context}")
