"""Quantization schemes: their names, the meaning of a name, and the parity threshold of each.

    none            float32
    fp16            weights in float16
    wBaA            B-bit weights, one scale for each output channel (a target may use smaller
                    groups); A-bit activations: 32 is float32, 16 float16, 8 is int8 with scales
                    computed at run time
    wBgGaA          the same with a scale for each group of G weights of a row
    wBaAs, wBgGaAs  activations are quantized with static scales, found by calibration
    pB              a palette of 2^B values for each matrix, computed in float16

So `w4g32a8` has 4-bit weights with a scale for each 32, and 8-bit activations. Each target lists
the schemes that it supports (`Target.schemes`); this file defines the meaning of their names.

`--quantize` takes one scheme for all stages, and others for single stages:
`fp16,decoder=w4g32a16`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from edgevlm.errors import RecipeError

EXACT = "none"
# Stages whose outputs are indices and selected rows, which are never quantized.
NOT_ROUNDED = ("reduce",)
_WEIGHTS = re.compile(r"w([1-8])(?:g([1-9]\d{0,3}))?a(8|16|32)(s?)", re.ASCII)
_PALETTE = re.compile(r"p([1-8])", re.ASCII)
_STAGE = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


@dataclass(frozen=True)
class Scheme:
    """The meaning of a scheme's name.

    Attributes:
        name: As the user writes it.
        weight_bits: Bits of a weight.
        activation_bits: Bits of an input of a linear layer.
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

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of a weight, and of an input of a linear layer."""
        return self.weight_bits, self.activation_bits


@dataclass(frozen=True)
class Threshold:
    """The parity that a scheme must reach, by one of the two measures.

    `end_to_end` is whether the logits must reach it too, and not each block alone: with low-bit
    weights the errors of blocks add up, and `evaluate` measures their effect on answers.
    """

    rel_error: float | None = None
    psnr_db: float | None = None
    end_to_end: bool = True

    @property
    def exact(self) -> bool:
        """Whether answers must be the same, token by token."""
        return self.rel_error is not None

    def accepts(self, rel_error: float, psnr_db: float | None) -> bool:
        """Whether a difference is small enough; a `psnr_db` of None is no difference."""
        if self.rel_error is not None:
            return rel_error <= self.rel_error
        return psnr_db is None or psnr_db >= (self.psnr_db or 0.0)


@dataclass(frozen=True)
class Schemes:
    """The schemes of a recipe: a default, and those of single stages.

    Attributes:
        default: Scheme of all other stages.
        stages: Stage and scheme, sorted by stage.
    """

    default: str = EXACT
    stages: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Schemes:
        """Read `SCHEME`, `STAGE=SCHEME` or both, with commas; without a default it is `none`.

        Raises:
            RecipeError: If the text has another form, repeats a stage, or has an unknown scheme.
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
        """The same stages, with `rule` applied to each scheme."""
        return Schemes(rule(self.default), tuple((stage, rule(n)) for stage, n in self.stages))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return ",".join([self.default, *("=".join(pair) for pair in self.stages)])


@cache
def parse_scheme(name: str) -> Scheme:
    """Read the name of a scheme.

    Raises:
        RecipeError: If it is not the name of a scheme.
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
            f"'{name[:60]}' is not a quantization scheme; expected one like none, fp16, w8a8,"
            " w4g32a16 or p6"
        )
    group = int(match[2]) if match[2] else None
    return Scheme(name, int(match[1]), int(match[3]), group, static=bool(match[4]))


def threshold(scheme: str) -> Threshold:
    """The parity threshold of a scheme, by its bits."""
    parsed = parse_scheme(scheme)
    if parsed.weight_bits == 32:
        return Threshold(rel_error=1e-3)
    if parsed.weight_bits == 16:
        return Threshold(psnr_db=55.0)
    if parsed.weight_bits < 8:
        return Threshold(psnr_db=20.0, end_to_end=False)
    return Threshold(psnr_db=30.0 if parsed.activation_bits == 8 else 40.0, end_to_end=False)
