"""What the user asks for. Each field is an option of `edgevlm export` and `edgevlm plan`.

The defaults live here and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgevlm.errors import RecipeError

MB = 10**6
MOST_FRAMES = 1024
MOST_CHECKED = 64
# No model has more positions; a cache of more would be sized before anything else is looked at.
MOST_TOKENS = 2**24


@dataclass(frozen=True)
class Recipe:
    """A request, in numbers and names.

    Attributes:
        model: Hub id, local folder, or `embedded`.
        revision: Commit or tag of a hub id; None is the newest.
        target: Name of a target, such as `onnx`.
        tokens: Visual tokens kept per image or clip; None keeps all.
        methods: Token reductions, each `NAME[@SITE][:key=value,…]`.
        quantize: Scheme of the weights; `none` is float32. Stages may have their own:
            `fp16,decoder=w4g32a16`.
        context: Cache length in tokens; None is the prompt of one image and 512 more, rounded up.
        frames: Frames of a clip, at least 2; 1 means still images.
        tiles: Tile grid of an image as (rows, columns); (1, 1) is the global view alone.
        block_size_bytes: Largest block of weights, as far as single layers allow.
        chunk: Tokens per prefill call; None lets the plan choose.
        calibrate: Pictures for schemes that round by what was seen: a number of scenes of the
            embedded dataset, a folder of pictures, or a file of questions.
        backend: Which of the target's backends computes; None is the target's first.
        speculate: Tokens that one call of `check` takes, for speculative decoding; 0 is none.
    """

    model: str = "embedded"
    revision: str | None = None
    target: str = "onnx"
    tokens: int | None = None
    methods: tuple[str, ...] = ()
    quantize: str = "none"
    context: int | None = None
    frames: int = 1
    tiles: tuple[int, int] = (1, 1)
    block_size_bytes: int = 64 * MB
    chunk: int | None = None
    calibrate: str | None = None
    backend: str | None = None
    speculate: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no model could serve."""
        for name in ("tokens", "context", "frames", "block_size_bytes", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} must be at least 1, got {value}")
        limits = {"frames": MOST_FRAMES, "context": MOST_TOKENS, "chunk": MOST_TOKENS}
        for name, most in limits.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise RecipeError(f"{name} must be at most {most}, got {value}")
        if self.speculate not in (0, *range(2, MOST_CHECKED + 1)):
            raise RecipeError(
                f"speculate is 0 or a number from 2 to {MOST_CHECKED}, got {self.speculate}"
            )
        if self.calibrate is not None and not self.calibrate.strip("0"):
            raise RecipeError(f"calibrate is a number from 1 or a path, got '{self.calibrate}'")
        texts = (self.model, self.revision or "", self.target, self.quantize, *self.methods)
        texts += (self.calibrate or "", self.backend or "")
        if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
            raise RecipeError("a name in the recipe is not valid UTF-8")
        if min(self.tiles) < 1:
            raise RecipeError(f"tiles must be at least 1x1, got {self.tiles[0]}x{self.tiles[1]}")
        if self.frames > 1 and self.tiles != (1, 1):
            raise RecipeError("frames and tiles do not go together: frames of a clip are not split")

    def schemes(self) -> dict[str, str]:
        """Schemes that `quantize` names by stage; that of all other stages has the key "".

        Raises:
            RecipeError: If it has another form, or a stage is named twice.
        """
        found: dict[str, str] = {}
        for part in self.quantize.split(","):
            stage, equals, scheme = part.strip().rpartition("=")
            if not scheme or (equals and not stage) or stage in found:
                raise RecipeError(
                    "quantize looks like SCHEME or SCHEME,STAGE=SCHEME,…, for example"
                    f" fp16,decoder=w8a16, got '{self.quantize}'"
                )
            found[stage] = scheme
        return {"": "none"} | found

    def scheme(self, stage: str) -> str:
        """Scheme of a stage; a choice of tokens is never rounded."""
        schemes = self.schemes()
        return "none" if stage == "reduce" else schemes.get(stage, schemes[""])


def parse_tiles(text: str) -> tuple[int, int]:
    """`2x3` -> (2, 3): rows, columns."""
    match = re.fullmatch(r"(\d{1,2})x(\d{1,2})", text.strip())
    if not match:
        raise RecipeError(f"tiles must look like ROWSxCOLUMNS, for example 2x2, got '{text}'")
    return int(match[1]), int(match[2])


def parse_bytes(text: str) -> int:
    """`64MB` -> 64_000_000; units kB, MB, GB are powers of ten, KiB, MiB, GiB of two."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": MB, "gb": 10**9}
    units |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([a-zA-Z]*)", text.strip())
    if not match or match[2].lower() not in units:
        raise RecipeError(f"a size looks like 64MB or 1.5GB, got '{text[:60]}'")
    return int(float(match[1]) * units[match[2].lower()])


@dataclass(frozen=True)
class MethodChoice:
    """One `--method` in parts: `tome@tokens:rounds=2` is name, site and options."""

    name: str
    site: str | None
    options: dict[str, int | float | str]


def parse_method(text: str) -> MethodChoice:
    """Split `NAME[@SITE][:key=value,…]`; numbers become numbers.

    Numbers without a key (`schedule:8x64,4x16`) are the method's first option, under the key "".

    Raises:
        RecipeError: If the text has another form.
    """
    match = re.fullmatch(r"([\w-]+)(?:@(\w+))?(?::(.*))?", text.strip())
    given = match[3] if match and match[3] else ""
    if match and re.fullmatch(r"\d[\dx+,]*", given):  # `schedule:8x64,4x16`
        options = {"": _number(given.replace(",", "+"))}
        return MethodChoice(match[1].replace("-", "_"), match[2], options)
    pairs = [pair.partition("=") for pair in given.split(",")] if given else []
    if not match or any(not key or not equals for key, equals, _ in pairs):
        raise RecipeError(f"a method looks like NAME[@SITE][:key=value,…], got '{text}'")
    options = {key.strip(): _number(value.strip()) for key, _, value in pairs}
    return MethodChoice(match[1].replace("-", "_"), match[2], options)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
