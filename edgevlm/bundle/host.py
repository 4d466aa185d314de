"""Constants that the program around the graphs needs, as plain numbers.

Each kind of bundle puts its host together from these (`bundle.kinds`); a phone reads them from the
manifest. Shapes: P tiles or frames, N tokens of one tile, K kept tokens, C channels, S tokens of a
call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from edgevlm.bundle.packed import PACKINGS

# Sides of a text at which white space is taken off.
SIDES = ("", "left", "right", "both")

# Who sees whom in a prompt. `causal`: a token sees those before it. `pictures`: visual tokens of a
# picture see each other too. `prefix`: all tokens of a first turn see each other.
MASKS = ("causal", "pictures", "prefix")

# What `encode` may give beside features, for methods; graphs/signals.py defines each.
SIGNALS = (
    "cls_attention", "early_cls_attention", "flat_cls_attention", "cls_logits",
    "last_cls_attention", "keys", "flat_keys", "global_attention", "hidden", "patch_entropy",
)  # fmt: skip


# What `encode` gives of levels of the encoder before its last, which go to layers of the decoder.
LEVELS = tuple(f"level_{index}" for index in range(8))


MOST_CANDIDATES = 1024  # frames of a video that a picker looks at


@dataclass(frozen=True)
class LayoutItem:
    """One item of the sequence.

    kind `ids`: fixed rows of the embedding table. `image`: the parts of `Layout.image`, once for
    each image or clip, or with a `stop` for those of [start, stop). `visual`: the visual tokens
    whose kept position lies in [start, stop), in the order of `reduce`. `user_text`, `system_text`,
    `timestamp` (of frame `start`, as MM:SS), `seconds` (the middle between the first and the last
    of the frames [start, stop), with one decimal), `duration` (H:MM:SS), `number` (of the image in
    its turn, from 0): text known at run time, tokenized together with `prefix` and `suffix`.
    `text`: fixed text. Neighbouring items of text are one run, which is tokenized as one.

    The question loses white space at the sides that `trim` names (`left`, `right`, `both`, or
    nothing), as the chat template says, and so does a system text; the run loses it at the sides
    that `strip` of its first and of its last item name, to the special tokens beside it. With
    `blank` of its first item a run that does not begin with a blank gets one; with `after` it is
    tokenized behind that text, whose ids are dropped.

    Where rotary positions have several axes (time, height, width), visual tokens [start, stop) have
    `places`: coordinates on each axis, all combinations of which are the places of the tokens, in
    raster order. A place, added to the position at which the item begins, is a token's position,
    which is never below 0; on the first axis the place is multiplied by `per_second` times the
    seconds of a view, where this is not 0, and rounded down. What follows goes on `span` after that
    beginning, however many tokens are kept. Ids of an image may have places and a span too; then
    words of an id in `joins`, directly behind the item, stand where it begins, and what follows
    does not go on for them. With one axis there are no places.
    """

    kind: str
    ids: tuple[int, ...] = ()
    start: int = 0
    stop: int = 0
    places: tuple[tuple[int, ...], ...] = ()
    span: int = 0
    joins: tuple[int, ...] = ()
    per_second: float = 0.0
    prefix: str = ""
    suffix: str = ""
    trim: str = ""
    strip: str = ""
    blank: bool = False
    after: str = ""


def raster(*sides: int) -> tuple[tuple[int, ...], ...]:
    """Places of a grid with so many tokens on each axis."""
    return tuple(tuple(range(side)) for side in sides)


@dataclass(frozen=True)
class Layout:
    """The sequence of a turn: the first with pictures, the first without, each further one.

    `image` is what stands for one picture or clip in `prompt`, `between` what stands between two
    of them. With `one_image` the model's template has no place for a second one. `text` and `turn`
    are empty where the model has no such turns.

    With a system text `prompt_system` goes in place of what `prompt` has in front of its picture,
    and `text_system` in place of what `text` has in front of the question; both are empty where the
    model's template has no place for one. Where a first turn `mixes` texts and pictures in any
    order, `text_text` stands between two texts, `text_image` between a text and a picture, and
    `image_end` behind a picture that is last; what else it needs is in `prompt`, `text` and
    `between`.
    """

    prompt: tuple[LayoutItem, ...]
    image: tuple[LayoutItem, ...]
    text: tuple[LayoutItem, ...]
    turn: tuple[LayoutItem, ...]
    between: tuple[LayoutItem, ...] = ()
    one_image: bool = False
    prompt_system: tuple[LayoutItem, ...] = ()
    text_system: tuple[LayoutItem, ...] = ()
    mixes: bool = False
    text_text: tuple[LayoutItem, ...] = ()
    text_image: tuple[LayoutItem, ...] = ()
    image_end: tuple[LayoutItem, ...] = ()

    def image_tokens(self, visual_tokens: int) -> int:
        """Tokens of the sequence that one image or clip takes, markers included."""
        return _fixed_tokens(self.image, 0) + visual_tokens

    def prompt_tokens(self, visual_tokens: int) -> int:
        """Tokens of a first turn with one image and an empty question."""
        return _fixed_tokens(self.prompt, self.image_tokens(visual_tokens))


@dataclass(frozen=True)
class ImageSpec:
    """Preprocessing as plain numbers.

    The picture (sRGB, 8 bit, upright) is resized (`resample`) to rows·height x columns·width: by
    `fit` `stretch` whatever its shape, by `crop` until its shorter side has `shorter` pixels (0:
    those of the view), and its middle is taken. It is cut into tiles in raster order; with more
    than one tile the whole picture resized to height x width is the global view, `first` or `last`.
    Of a clip each `depth` frames are one view, their channels one after the other; the last frame
    fills the last view up. A pixel is (value / 255 - mean) / std, channels first.

    Of a video, frames are taken evenly in time; with a `picker`, a method of site `input` looks at
    `candidates` of them and picks.
    """

    height: int
    width: int
    rows: int
    columns: int
    global_view: str
    frames: int
    resample: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: str = "stretch"
    depth: int = 1
    shorter: int = 0
    picker: str = ""
    candidates: int = 0

    @property
    def tiling(self) -> tuple[tuple[int, int], str, int]:
        """What the views are, as `VisualShape` has it.

        Grid of tiles; where the whole picture is beside them, `first`, `last` or nowhere; and how
        many views follow each other in time, 1 for a picture.
        """
        tiled = self.rows * self.columns > 1
        times = self.views if self.frames > 1 else 1
        return (self.rows, self.columns), self.global_view if tiled else "", times

    @property
    def subject(self) -> str:
        """What is preprocessed: an `image`, or the frames of a `video`."""
        return "video" if self.frames > 1 else "image"

    @property
    def views(self) -> int:
        """Calls of `encode` per image or clip: P."""
        tiles = self.rows * self.columns
        return -(-self.frames // self.depth) if self.frames > 1 else tiles + (tiles > 1)

    @property
    def channels(self) -> int:
        """Channels of a view: three of each of its frames."""
        return 3 * self.depth

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all views as the encoder takes them, float32."""
        return 4 * self.channels * self.height * self.width * self.views


@dataclass(frozen=True)
class Embedding:
    """The table whose rows the host reads: `rows` x `columns`, row-major.

    `dtype` is `f32`, or a packing of `bundle.packed`: the numbers of all rows, then all scales. A
    row is multiplied by `scale` after it is read; a head that shares the table is not.
    """

    rows: int
    columns: int
    dtype: str
    file: str = ""
    scale: float = 1.0

    @property
    def bytes(self) -> int:
        """Size of the table file."""
        numbers, scales = self.row_bytes
        return self.rows * (numbers + scales)

    @property
    def row_bytes(self) -> tuple[int, int]:
        """Bytes of the numbers and of the scales of a row."""
        if self.dtype == "f32":
            return self.columns * 4, 0
        packing = PACKINGS[self.dtype]
        return packing.row_bytes(self.columns), packing.groups(self.columns) * 4

    def row_offset(self, row: int) -> tuple[int, int]:
        """The bytes of the file at which the numbers and the scales of a row begin."""
        numbers, scales = self.row_bytes
        return row * numbers, self.rows * numbers + row * scales


@dataclass(frozen=True)
class LayerTable:
    """A second table, of what each layer of the decoder gets of a token beside its row.

    `table` has as many columns for each layer, in order. Visual tokens, and words beyond its rows,
    have the row `visual_row`.
    """

    table: Embedding
    visual_row: int


@dataclass(frozen=True)
class LayerRows:
    """What a family says of a second table, whatever its rows; see `LayerTable`.

    Attributes:
        columns: Numbers of a layer.
        scale: Factor of a row after it is read.
        visual_row: Row of visual tokens, and of words beyond the table.
    """

    columns: int
    scale: float
    visual_row: int


@dataclass(frozen=True)
class Signal:
    """What one part of the encoder gives beside its tokens, for a method.

    Attributes:
        name: One of `SIGNALS`, or of `LEVELS`.
        part: Part of the stage that gives it; part 0 is the embedding, then the layers; the
            connector gives those of layers that follow.
        width: E of the shape [1, N, E]; 0 for a number a token, [1, N].
    """

    name: str
    part: int
    width: int


@dataclass(frozen=True)
class EncoderShape:
    """Sizes inside an image encoder: an embedding, its layers, and a connector or head.

    Attributes:
        width: D of the hidden state [1, n, D] between layers.
        tokens: n before the first layer and after each, a class token included; it falls where a
            method of site `vision` merges, or where the encoder itself folds tokens.
        view_tokens: N, tokens that the connector gives for a view.
        signals: What methods ask for beside features.
        folds: Whether the encoder itself folds tokens, or tokens leave it; none merge then.
    """

    width: int
    tokens: tuple[int, ...]
    view_tokens: int
    signals: tuple[Signal, ...] = ()
    folds: bool = False

    @property
    def parts(self) -> int:
        """Parts of the stage: embedding, layers, connector."""
        return len(self.tokens) + 1

    def merged(self, part: int) -> bool:
        """Whether the input of a part of the stage is of merged tokens."""
        return part > 0 and self.tokens[part - 1] < self.tokens[0] and not self.folds


@dataclass(frozen=True)
class StreamSpec:
    """What a stream of frames without an end needs beside what a clip does.

    Attributes:
        tokens: Visual tokens kept of a view.
        turned: Layers of the decoder whose keys are turned by their positions; a layer without
            positions has others.
    """

    tokens: int
    turned: tuple[int, ...]


@dataclass(frozen=True)
class Rope:
    """Rotary tables: cos and sin of position · `inverse_frequencies`, twice, times `scaling`.

    With `sections` a position has an axis for each (time, height, width: M-RoPE, arXiv 2409.12191),
    and so many frequencies turn by each: one section after the other, or, if `interleaved`, in
    turns, where the first axis has all that the others leave over.
    """

    inverse_frequencies: tuple[float, ...]
    scaling: float
    sections: tuple[int, ...] = ()
    interleaved: bool = False

    @property
    def size(self) -> int:
        """Numbers of a head that it turns: columns of its tables."""
        return 2 * len(self.inverse_frequencies)

    @property
    def axes(self) -> int:
        """Numbers of a position."""
        return len(self.sections) or 1

    @cached_property
    def frequency_axes(self) -> tuple[int, ...]:
        """The axis by which each frequency turns."""
        if not self.interleaved:
            sections = enumerate(self.sections or (len(self.inverse_frequencies),))
            return tuple(axis for axis, count in sections for _ in range(count))
        turns = ((j // self.axes, j % self.axes) for j in range(len(self.inverse_frequencies)))
        return tuple(axis if turn < self.sections[axis] else 0 for turn, axis in turns)


def _fixed_tokens(items: tuple[LayoutItem, ...], image_tokens: int) -> int:
    """Tokens of items but their visual ones; text known at run time counts its most."""
    # "01:23", "83.0" and "0:01:23" tokenize to at most one token per character, with the words
    # around them about as many tokens as words; the exact number is known at run time and is never
    # larger.
    sizes = {"image": image_tokens, "visual": 0, "user_text": 0, "system_text": 0}
    return sum(
        len(p.ids) if p.kind == "ids" else sizes.get(p.kind, len(p.prefix) + len(p.suffix) + 7)
        for p in items
    )
