"""The result of `verify`: what every kind has. A kind's driver adds its end-to-end measures.

`ok` is whether all checks pass; the reason of a failure is the first check that does not. Checks of
blocks come first, in the plan's order, so the earliest block that differs is the one that is named.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from edgevlm.parity.checks import Check
from edgevlm.quantization.schemes import Threshold


@dataclass(frozen=True)
class BlockParity:
    """One function: rel_error of its worst call, psnr_db over all calls, None where none differs.

    `half_psnr_db` is what PyTorch has in float16 at worst, where tokens merge in the encoder.
    """

    name: str
    function: str
    rel_error: float
    psnr_db: float | None
    ok: bool
    half_psnr_db: float | None = None


@dataclass(frozen=True)
class Verification(ABC):
    """What every kind's result has.

    Attributes:
        engine: Name of the engine.
        thresholds: By stage.
        blocks: Every function, in the plan's order.
        checks: Everything that was asked, blocks first.
        largest_float16: For each `BLOCK.FUNCTION` that computes in float16, the largest number in
            it and the operation that gave it.
        ok: Whether all checks pass.
    """

    engine: str
    thresholds: dict[str, Threshold]
    blocks: tuple[BlockParity, ...]
    checks: tuple[Check, ...]
    largest_float16: dict[str, tuple[float, str]]
    ok: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ok", all(check.ok for check in self.checks))

    def first_failure(self) -> str:
        """One line: why the first check that fails does; empty where none does."""
        return next((check.text for check in self.checks if not check.ok), "")

    @property
    def exact(self) -> bool:
        """Whether no stage is rounded, so that answers must be the same."""
        return all(threshold.exact for threshold in self.thresholds.values())

    @property
    @abstractmethod
    def summary(self) -> str:
        """The end-to-end measures, one line."""

    @property
    @abstractmethod
    def agreement(self) -> str:
        """How near the bundle is to PyTorch, in a few words."""

    @property
    def worst_block(self) -> str:
        """The function that differs most, and its psnr_db."""
        differing = [block for block in self.blocks if block.psnr_db is not None]
        worst = min(differing, key=lambda block: block.psnr_db or 0.0, default=None)
        if worst is None:
            return "none, all are exact"
        return f"{worst.name}.{worst.function} {worst.psnr_db:.0f} dB"
