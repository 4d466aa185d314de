"""Quantization schemes: their names, what a name says, and how near to PyTorch each must come.

    none            float32
    fp16            weights in float16
    wBaA            weights of B bits, one scale for each output channel (a target may use shorter
                    runs); activations of A bits: 32 is float32, 16 float16, 8 is rounded with
                    scales that are computed as the model runs
    wBgGaA          the same with a scale for each G weights of a row
    wBaAs, wBgGaAs  activations are rounded with static scales, found by calibration
    pB              a palette of 2^B values for each matrix, computed in float16

So `w4g32a8` has weights of 4 bits, a scale for each 32 of them, and activations of 8 bits. Which
schemes exist is a target's own list (`SCHEMES`); here is what their names mean.

`--quantize` takes one for all stages, and others for single stages: `fp16,decoder=w4g32a16`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from edgevlm.errors import RecipeError

EXACT = "none"
# Their outputs are indices and a choice of rows, which are never rounded.
NOT_ROUNDED = ("reduce",)
_WEIGHTS = re.compile(r"w([1-8])(?:g([1-9]\d{0,3}))?a(8|16|32)(s?)", re.ASCII)
_PALETTE = re.compile(r"p([1-8])", re.ASCII)
_STAGE = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


@dataclass(frozen=True)
class Scheme:
    """What the name of a scheme says.

    Attributes:
        name: As the user writes it.
        weight_bits: Bits of a weight.
        activation_bits: Bits of a number that goes into a linear layer.
        group: Weights of a row that share a scale; None is one scale for each output channel.
        static: Whether the scales of activations come from calibration.
        palette: Whether a weight is an index into a table of values.
    """

    name: str
    weight_bits: int
    activation_bits: int
    group: int | None = None
    static: bool = False
    palette: bool = False


@dataclass(frozen=True)
class Threshold:
    """What a scheme must reach: one of the two measures.

    `whole` is whether the logits must reach it too, and not each block alone: with low-bit weights
    the errors of blocks add up, and `evaluate` says what that costs.
    """

    rel_error: float | None = None
    psnr_db: float | None = None
    whole: bool = True

    @property
    def exact(self) -> bool:
        """Whether answers must be the same, token by token."""
        return self.rel_error is not None

    def accepts(self, rel_error: float, psnr_db: float | None) -> bool:
        """Whether a difference is small enough; a `psnr_db` of None means none at all."""
        if self.rel_error is not None:
            return rel_error <= self.rel_error
        return psnr_db is None or psnr_db >= (self.psnr_db or 0.0)

    def said(self, rel_error: float, psnr_db: float | None) -> str:
        """What was got and what is accepted."""
        if self.rel_error is not None:
            return f"rel_error {rel_error:.2e}, at most {self.rel_error:.0e} is accepted"
        return f"psnr_db {psnr_db or 0.0:.1f}, at least {self.psnr_db:.0f} is accepted"


@dataclass(frozen=True)
class Schemes:
    """The schemes of a recipe: one for all stages, and those of stages that have their own.

    Attributes:
        default: Scheme of every stage that is not named.
        stages: Stage and scheme, sorted by stage.
    """

    default: str = EXACT
    stages: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Schemes:
        """Read `SCHEME`, `STAGE=SCHEME` or both, with commas; without a default it is `none`.

        Raises:
            RecipeError: If the text has another form, names a stage twice, or a name is no scheme.
        """
        schemes: dict[str, str] = {}
        for item in text.split(","):
            stage, equals, name = item.strip().rpartition("=")
            if not name or (equals and not _STAGE.fullmatch(stage)) or stage in schemes:
                raise RecipeError(
                    "quantize looks like SCHEME or SCHEME,STAGE=SCHEME,…, for example"
                    f" fp16,decoder=w8a16, got '{text[:60]}'"
                )
            schemes[stage] = parse_scheme(name).name
        return cls(schemes.pop("", EXACT), tuple(sorted(schemes.items())))

    @property
    def names(self) -> tuple[str, ...]:
        """All schemes that are named, the default first."""
        return (self.default, *(name for _, name in self.stages))

    def of(self, stage: str) -> str:
        """Scheme of a stage."""
        return EXACT if stage in NOT_ROUNDED else dict(self.stages).get(stage, self.default)

    def replaced(self, rule: Callable[[str], str]) -> Schemes:
        """The same stages, each with the scheme that `rule` gives for its own."""
        return Schemes(rule(self.default), tuple((stage, rule(n)) for stage, n in self.stages))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return ",".join([self.default, *("=".join(pair) for pair in self.stages)])


@cache
def parse_scheme(name: str) -> Scheme:
    """Read the name of a scheme.

    Raises:
        RecipeError: If no scheme could have that name.
    """
    if name == EXACT:
        return Scheme(name, 32, 32)
    if name == "fp16":
        return Scheme(name, 16, 16)
    if match := _PALETTE.fullmatch(name):
        return Scheme(name, int(match[1]), 16, palette=True)
    match = _WEIGHTS.fullmatch(name)
    if not match or (match[4] and match[3] != "8"):
        raise RecipeError(
            f"'{name[:60]}' is no quantization scheme; they look like none, fp16, w8a8, w4g32a16"
            " or p6"
        )
    group = int(match[2]) if match[2] else None
    return Scheme(name, int(match[1]), int(match[3]), group, static=bool(match[4]))


def threshold(scheme: str) -> Threshold:
    """What a bundle in this scheme must reach, by the bits that it rounds to."""
    parsed = parse_scheme(scheme)
    if parsed.weight_bits == 32:
        return Threshold(rel_error=1e-3)
    if parsed.weight_bits == 16:
        return Threshold(psnr_db=55.0)
    if parsed.weight_bits < 8:
        return Threshold(psnr_db=20.0, whole=False)
    return Threshold(psnr_db=30.0 if parsed.activation_bits == 8 else 40.0, whole=False)
