"""The request of a user: a recipe, parsed once.

Each field is declared with its option (`edgevlm.options`), from which commands with a recipe derive
their options. A field with a parser may be given as text or as a parsed value, and holds the parsed
value. All defaults are defined here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from edgevlm.errors import RecipeError
from edgevlm.options import option, options
from edgevlm.quantization.schemes import Schemes
from edgevlm.units import MB, parse_bytes, spell_bytes

MOST_FRAMES = 1024
MOST_CHECKED = 64
MOST_SIDE = 2**14  # pixels of a picture's side; a static graph of more is no use
# No model has more positions; the limit bounds the cache before the model is read.
MOST_TOKENS = 2**24
MOST_GUIDANCE = 100.0

OptionValue = int | float | str


@dataclass(frozen=True)
class MethodChoice:
    """One `--method`: `tome@tokens:rounds=2` is name, site and options.

    Attributes:
        name: Name of the method's file.
        site: Site of the method; None is its preferred site.
        options: Names and values; the name "" is the method's first option.
    """

    name: str
    site: str | None = None
    options: tuple[tuple[str, OptionValue], ...] = ()

    @classmethod
    def parse(cls, text: str) -> MethodChoice:
        """Read `NAME[@SITE][:key=value,…]`; numbers become numbers.

        Numbers without a key (`schedule:8x64,4x16`) are the value of the method's first option.

        Raises:
            RecipeError: If the text has another form, or an option is named twice.
        """
        match = re.fullmatch(r"([\w-]+)(?:@(\w+))?(?::(.+))?", text.strip())
        if not match:
            raise _no_method(text)
        name, site, tail = match[1].replace("-", "_"), match[2], match[3] or ""
        if re.fullmatch(r"\d[\dx+,]*", tail):
            return cls(name, site, (("", _number(tail.replace(",", "+"))),))
        options: dict[str, OptionValue] = {}
        for pair in tail.split(",") if tail else ():
            key, _, value = map(str.strip, pair.partition("="))
            if not key.isidentifier() or not value or key in options:
                raise _no_method(text)
            options[key] = _number(value)
        return cls(name, site, tuple(options.items()))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        options = ",".join(f"{key}={value}" if key else f"{value}" for key, value in self.options)
        return self.name + (f"@{self.site}" if self.site else "") + (f":{options}" * bool(options))


def parse_tiles(text: str) -> tuple[int, int]:
    """`2x3` -> (2, 3): rows, columns."""
    match = re.fullmatch(r"(\d{1,2})x(\d{1,2})", text.strip())
    if not match:
        raise RecipeError(f"tiles must look like ROWSxCOLUMNS, for example 2x2, got '{text[:60]}'")
    return int(match[1]), int(match[2])


def spell_pair(pair: tuple[int, int]) -> str:
    """(2, 3) -> `2x3`."""
    first, second = pair
    return f"{first}x{second}"


def parse_size(text: str) -> tuple[int, int]:
    """`448x672` -> (448, 672): height, width."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip())
    if not match:
        raise RecipeError(
            f"size must look like HEIGHTxWIDTH in pixels, for example 448x672, got '{text[:60]}'"
        )
    return int(match[1]), int(match[2])


def leap_rule(after: int | None) -> tuple[MethodChoice, ...]:
    """What `--leap N` is short for; nothing for None."""
    return () if after is None else (MethodChoice("leap", None, (("after", after),)),)


def parse_guidance(text: str) -> float:
    """`5.0` -> 5.0: a factor from 1 to 100."""
    number = float(text)
    if not 1 <= number <= MOST_GUIDANCE:
        raise RecipeError(f"guidance must be from 1 to {MOST_GUIDANCE:g}, got '{text[:60]}'")
    return number


@dataclass(frozen=True)
class Recipe:
    """A request in numbers and names; the help of each field is its documentation.

    Raises:
        RecipeError: For a malformed text, or a value that no model supports.
    """

    model: str = field(
        default="embedded",
        metadata=option(
            "Hub id, folder of a checkpoint or of a diffusers pipeline, or 'embedded'.",
            "MODEL",
            flag="",
        ),
    )
    revision: str | None = field(
        default=None, metadata=option("Commit or tag of a Hub id; default: the newest.", "REF")
    )
    target: str = field(
        default="onnx",
        metadata=option("Format to export to; `edgevlm targets` lists them.", "TARGET"),
    )
    tokens: int | None = field(
        default=None,
        metadata=option("Visual tokens kept per image or clip; default: all.", "N", least=1),
    )
    methods: tuple[MethodChoice, ...] = field(
        default=(),
        metadata=option(
            "Token-reduction method; `edgevlm methods` lists them. Repeat for several sites.",
            "NAME[@SITE][:key=value,…]",
            flag="--method",
            parse=MethodChoice.parse,
        ),
    )
    quantize: Schemes = field(
        default=Schemes(),
        metadata=option(
            "Quantization scheme, also for single stages: fp16,decoder=w8a16. 'none' is float32;"
            " `edgevlm targets` lists schemes.",
            "SCHEME[,STAGE=SCHEME,…]",
            parse=Schemes.parse,
        ),
    )
    context: int | None = field(
        default=None,
        metadata=option(
            "Length of the KV cache in tokens; default: a prompt with one image and 512 more,"
            " rounded up.",
            "N",
            least=1,
            most=MOST_TOKENS,
        ),
    )
    frames: int = field(
        default=1,
        metadata=option(
            "Frames of a clip; 1 means still images, and of a video the pipeline's own number.",
            "N",
            least=1,
            most=MOST_FRAMES,
        ),
    )
    stream: int | None = field(
        default=None,
        metadata=option(
            "Visual tokens kept per frame of a stream (`run --stream`), for bundles with --frames;"
            " default: the bundle takes no streams.",
            "N",
            least=1,
        ),
    )
    tiles: tuple[int, int] = field(
        default=(1, 1),
        metadata=option(
            "Grid of tiles that an image is cut into; 1x1 is the whole image alone.",
            "ROWSxCOLUMNS",
            parse=parse_tiles,
            show=spell_pair,
        ),
    )
    size: tuple[int, int] | None = field(
        default=None,
        metadata=option(
            "Pixels of a view, where a model reads pictures of several sizes; default: the"
            " family's.",
            "HEIGHTxWIDTH",
            parse=parse_size,
            show=spell_pair,
        ),
    )
    block_size_bytes: int = field(
        default=64 * MB,
        metadata=option(
            "Largest block in bytes of float32 weights; a layer is never split.",
            "SIZE",
            flag="--block-size",
            parse=parse_bytes,
            show=spell_bytes,
            least=1,
        ),
    )
    chunk: int | None = field(
        default=None,
        metadata=option(
            "Tokens per prefill call; default: chosen by the plan.",
            "N",
            least=1,
            most=MOST_TOKENS,
        ),
    )
    calibrate: str | None = field(
        default=None,
        metadata=option(
            "Images for static schemes such as w8a8s: N scenes of the embedded dataset, a folder of"
            " images, or a .jsonl file of questions.",
            "N|PATH",
        ),
    )
    backend: str | None = field(
        default=None,
        metadata=option(
            "Backend of the target, such as vulkan for executorch; default: its first.",
            "NAME",
        ),
    )
    speculate: int = field(
        default=0,
        metadata=option(
            "Tokens verified per call in speculative decoding (`run --draft`); 0 is off, 8 is"
            " typical.",
            "N",
        ),
    )

    steps: int | None = field(
        default=None,
        metadata=option(
            "Denoising steps of a video; default: the pipeline's own.", "N", least=1, most=1000
        ),
    )
    guidance: float | None = field(
        default=None,
        metadata=option(
            "Classifier-free guidance of a video, 1 is none; default: the pipeline's own.",
            "G",
            parse=parse_guidance,
            show=lambda value: f"{value:g}",
        ),
    )
    rules: tuple[MethodChoice, ...] = field(
        default=(),
        metadata=option(
            "Rule that spares denoising steps; `edgevlm rules` lists them. Repeat for several.",
            "NAME[:key=value,…]",
            flag="--rule",
            parse=MethodChoice.parse,
        ),
    )
    leap: int | None = field(
        default=None,
        metadata=option(
            "Denoiser calls of a video, the last one of which goes the rest of the way: short for"
            " --rule leap:after=N.",
            "N",
            least=1,
            most=1000,
        ),
    )
    layers: int | None = field(
        default=None,
        metadata=option(
            "The first N layers of the language model alone: a trial of a large model, whose"
            " answers mean nothing; default: all.",
            "N",
            least=1,
        ),
    )

    def __post_init__(self) -> None:
        """Parse texts; refuse values that no model supports."""
        for each in options(Recipe):
            object.__setattr__(self, each.name, each.value(getattr(self, each.name)))
        if self.speculate not in (0, *range(2, MOST_CHECKED + 1)):
            raise RecipeError(
                f"speculate must be 0 or from 2 to {MOST_CHECKED}, got {self.speculate}"
            )
        if self.calibrate is not None and not self.calibrate.strip("0"):
            raise RecipeError(
                f"calibrate must be a number from 1 or a path, got '{self.calibrate}'"
            )
        if min(self.tiles) < 1:
            raise RecipeError(f"tiles must be at least 1x1, got {self.tiles[0]}x{self.tiles[1]}")
        if self.size is not None and not all(1 <= side <= MOST_SIDE for side in self.size):
            raise RecipeError(
                f"size must be from 1x1 to {MOST_SIDE}x{MOST_SIDE} pixels, got"
                f" {spell_pair(self.size)}"
            )
        if self.stream is not None and self.frames < 2:
            raise RecipeError("a stream is of frames; give --frames too, which is 2 or more")
        if self.frames > 1 and self.tiles != (1, 1):
            raise RecipeError(
                "frames and tiles exclude each other, as clips are not tiled; drop one of them"
            )

    @property
    def step_rules(self) -> tuple[MethodChoice, ...]:
        """All rules, `leap` among them."""
        return (*self.rules, *leap_rule(self.leap))

    @property
    def trial(self) -> str:
        """What a reader must know of a bundle that is not the whole model; empty if it is."""
        if self.layers is None:
            return ""
        plural = "s" * (self.layers != 1)
        return (
            f"a trial: the first {self.layers} layer{plural} of the language model alone; its"
            " answers mean nothing"
        )

    def scheme(self, stage: str) -> str:
        """Quantization scheme of a stage."""
        return self.quantize.of(stage)


def _number(text: str) -> OptionValue:
    """An integer, a finite float, or the text itself."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if not math.isfinite(number):
            raise RecipeError(f"an option of --method must be a finite number, got '{text[:60]}'")
        return number
    return text


def _no_method(text: str) -> RecipeError:
    return RecipeError(f"a method looks like NAME[@SITE][:key=value,…], got '{text[:60]}'")
