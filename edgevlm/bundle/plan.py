"""The plan: a recipe in numbers, before any graph exists; with files, a bundle's manifest.

Importing this module needs neither torch nor transformers: a phone-side or numpy-only reader of a
bundle uses the same types. `edgevlm.planning.vlm` makes a plan from a recipe and a checkpoint.

Shapes: P tiles or frames, N tokens of one tile, K kept tokens, C channels, S tokens of a call,
T cache rows (`kv.tokens`), D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bundle.packed import PACKINGS
from edgevlm.recipe import Recipe

FORMAT_VERSION = 1
# What `encode` may give beside features, for methods; edgevlm/graphs/signals.py defines each.
SIGNALS = (
    "cls_attention", "early_cls_attention", "flat_cls_attention", "keys", "flat_keys",
    "global_attention",
)  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Name, dtype (`f32`, `i32`) and static shape of an input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Function:
    """One static graph of a block. `file` is its artifact inside the bundle, empty in a plan."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    flops: int
    file: str = ""


@dataclass(frozen=True)
class Block:
    """A contiguous piece of a stage; its functions share one copy of `weights_bytes`.

    `span` is the half-open range of the parts of its stage: layers in the decoder, rows of the
    vocabulary in the head.
    """

    name: str
    stage: str
    span: tuple[int, int]
    weights_bytes: int
    functions: tuple[Function, ...]

    def function(self, name: str) -> Function:
        """The function called `name`."""
        return next(f for f in self.functions if f.name == name)


@dataclass(frozen=True)
class SiteTokens:
    """Tokens before and after the method at one site."""

    site: str
    method: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class LayoutItem:
    """One piece of the sequence.

    kind `ids`: fixed rows of the embedding table. `image`: the parts of `Layout.image`, once per
    image or clip. `visual`: the visual tokens whose kept position lies in [start, stop), in the
    order of `reduce`. `user_text`, `timestamp` (of frame `start`, as MM:SS), `duration` (H:MM:SS):
    text known at run time, tokenized together with `prefix` and `suffix`. `text`: fixed text.
    Neighbouring parts of text are tokenized as one.
    """

    kind: str
    ids: tuple[int, ...] = ()
    start: int = 0
    stop: int = 0
    prefix: str = ""
    suffix: str = ""


@dataclass(frozen=True)
class Layout:
    """The sequence of a turn: the first with pictures, the first without, each further one.

    `image` is what stands for one picture or clip in `prompt`.
    """

    prompt: tuple[LayoutItem, ...]
    image: tuple[LayoutItem, ...]
    text: tuple[LayoutItem, ...]
    turn: tuple[LayoutItem, ...]


@dataclass(frozen=True)
class ImageSpec:
    """Preprocessing as plain numbers.

    The picture (sRGB, 8 bit, upright) is resized (`resample`, aspect not kept) to rows·height x
    columns·width and cut into tiles in raster order; with more than one tile the whole picture
    resized to height x width is the global view, `first` or `last`. A clip has one view per frame.
    A pixel is (value / 255 - mean) / std, channels first.
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

    @property
    def tiling(self) -> tuple[tuple[int, int], str]:
        """Grid of tiles, and where the whole picture is beside them: `first`, `last` or nowhere."""
        tiled = self.rows * self.columns > 1
        return (self.rows, self.columns), self.global_view if tiled else ""

    @property
    def views(self) -> int:
        """Calls of `encode` per image or clip: P."""
        tiles = self.rows * self.columns
        return self.frames if self.frames > 1 else tiles + (tiles > 1)


@dataclass(frozen=True)
class Embedding:
    """The table whose rows the host reads: `rows` x `columns`, row-major.

    `dtype` is `f32`, or a packing of `bundle.packed`: the numbers of all rows, then all scales.
    `tied`: the head reads its matrix from the same file.
    """

    rows: int
    columns: int
    dtype: str
    tied: bool
    file: str = ""

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

    def row_offsets(self, row: int) -> tuple[int, int]:
        """Offsets in the file, in bytes, of the numbers and of the scales of a row."""
        numbers, scales = self.row_bytes
        return row * numbers, self.rows * numbers + row * scales


@dataclass(frozen=True)
class Rope:
    """Rotary tables: cos and sin of position · `inverse_frequencies`, twice, times `scaling`."""

    inverse_frequencies: tuple[float, ...]
    scaling: float


@dataclass(frozen=True)
class KVCache:
    """The cache of every decoder layer: keys and values [1, heads, tokens, head_size].

    form `shared_buffer`: `past_*` and `present_*` are one buffer, written in place. `states`: they
    are a state of the model, named without `past_`; the runtime keeps it. `gone`: rows that each
    layer has less, where visual tokens leave inside the decoder; empty where none do.
    """

    form: str
    layers: int
    heads: int
    head_size: int
    tokens: int
    dtype: str = "f32"
    gone: tuple[int, ...] = ()

    def shape(self, layer: int) -> tuple[int, int, int, int]:
        """Shape of the keys, and of the values, of one layer."""
        tokens = self.tokens - (self.gone[layer] if self.gone else 0)
        return (1, self.heads, tokens, self.head_size)

    @property
    def bytes(self) -> int:
        """Bytes of all layers' keys and values."""
        tokens = self.layers * self.tokens - sum(self.gone)
        return 2 * self.heads * self.head_size * tokens * {"f32": 4, "f16": 2}[self.dtype]


@dataclass(frozen=True)
class Host:
    """Constants that the program around the graphs needs.

    `chunk` and `check` are the rows that a call of these functions takes; a `check` of 0 says that
    there is none.
    """

    image: ImageSpec
    embedding: Embedding
    rope: Rope
    kv: KVCache
    chunk: int
    positions: str
    vocabulary: int
    stop_ids: tuple[int, ...]
    check: int = 0


@dataclass(frozen=True)
class Source:
    """Where the weights came from; `config_hash` is the sha256 of config.json."""

    model: str
    revision: str | None
    family: str
    config_hash: str


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle with its identity."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Requires:
    """What a device must offer: versions of a target's format, as the exporter states them."""

    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plan:
    """All the numbers of a bundle. With `files` it is the bundle's manifest."""

    format_version: int
    kind: str
    source: Source
    recipe: Recipe
    sites: tuple[SiteTokens, ...]
    layout: Layout
    host: Host
    blocks: tuple[Block, ...]
    requires: Requires = Requires()
    files: tuple[FileEntry, ...] = ()

    @property
    def visual_tokens(self) -> int:
        """Visual tokens per image or clip that reach the language model: K."""
        return self.reduction.tokens_out

    @property
    def calibrated(self) -> bool:
        """Whether `reduce` says how much attention each visual token gets."""
        outputs = self.stage("reduce")[0].functions[0].outputs
        return any(tensor.name == "log_sizes" for tensor in outputs)

    @property
    def reduction(self) -> SiteTokens:
        """The counts of site `tokens`, which every plan has."""
        return next(site for site in self.sites if site.site == "tokens")

    @property
    def image_tokens(self) -> int:
        """Tokens of the sequence that one image or clip takes, markers included."""
        return _fixed_tokens(self.layout.image, 0) + self.visual_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a first turn with one image and an empty question."""
        return _fixed_tokens(self.layout.prompt, self.image_tokens)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights; a table shared by embedding and head counts once."""
        shared = "head" if self.host.embedding.tied else None
        blocks = sum(block.weights_bytes for block in self.blocks if block.stage != shared)
        return blocks + self.host.embedding.bytes

    def stage(self, name: str) -> tuple[Block, ...]:
        """Blocks of one stage, in order."""
        return tuple(block for block in self.blocks if block.stage == name)

    def block(self, name: str) -> Block:
        """The block called `name`."""
        return next(block for block in self.blocks if block.name == name)


def _fixed_tokens(parts: tuple[LayoutItem, ...], image_tokens: int) -> int:
    # "01:23" and "0:01:23" tokenize to at most one token per character, with the words around them
    # about as many tokens as words; the exact number is known at run time and is never larger.
    sizes = {"image": image_tokens, "visual": 0, "user_text": 0}
    return sum(
        len(p.ids) if p.kind == "ids" else sizes.get(p.kind, len(p.prefix) + len(p.suffix) + 7)
        for p in parts
    )
