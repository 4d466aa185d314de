"""What each scheme costs each block, measured, and the mixed recipe for a size.

The model is exported once in every scheme of the target, into a folder that is thrown away, and
verified: psnr_db of a block is that of its worst function against PyTorch on the same inputs. A
recipe has a scheme for each stage; that of the head is the embedding table's too where they share
it. Of all mixtures that fit a size, the one whose worst stage is best is proposed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from edgevlm.bundle.plan import Plan
from edgevlm.errors import PlanError
from edgevlm.exporters.contract import find_target
from edgevlm.parity.verification import Verification
from edgevlm.pipeline import export
from edgevlm.quantization.schemes import Schemes
from edgevlm.recipe import Recipe

STAGES = ("vision", "decoder", "head")
EXACT_DB = 200.0  # of float32: more than any rounding gives


@dataclass(frozen=True)
class Cost:
    """A block under a scheme; `psnr_db` is None where nothing differs from PyTorch."""

    block: str
    stage: str
    scheme: str
    bytes: int
    psnr_db: float | None


@dataclass(frozen=True)
class Proposal:
    """A mixture: what goes behind `--quantize`, its bytes, psnr_db of its worst block."""

    quantize: str
    bytes: int
    psnr_db: float


@dataclass(frozen=True)
class Sensitivity:
    """All measurements; `stage_bytes` and `stage_db` are by stage and scheme.

    The bytes of stage `head` are those of the embedding table too.
    """

    costs: tuple[Cost, ...]
    stage_bytes: dict[str, dict[str, int]]
    stage_db: dict[str, dict[str, float]]

    def propose(self, size: int) -> Proposal:
        """The mixture of at most `size` bytes whose worst stage is best.

        Raises:
            PlanError: If none is so small; it says what the smallest takes.
        """
        schemes = list(next(iter(self.stage_bytes.values())))
        found = []
        for mixture in product(schemes, repeat=len(STAGES)):
            chosen = dict(zip(STAGES, mixture, strict=True))
            total = sum(self.stage_bytes[stage][scheme] for stage, scheme in chosen.items())
            each = sorted(self.stage_db[stage][scheme] for stage, scheme in chosen.items())
            found.append((each, -total, _spelled(chosen)))
        fitting = [item for item in found if -item[1] <= size]
        if not fitting:
            least = min(-total for _, total, _ in found)
            raise PlanError(f"no mixture of schemes takes {size:,} bytes; the least is {least:,}")
        each, total, quantize = max(fitting)
        return Proposal(quantize, -total, each[0])


def measure(recipe: Recipe, progress: Callable[[str], None]) -> Sensitivity:
    """Export and verify the model in every scheme of the recipe's target.

    Schemes that round by pictures are left out where the recipe has none.
    """
    target = find_target(recipe.target)
    costs: list[Cost] = []
    stage_bytes: dict[str, dict[str, int]] = {stage: {} for stage in STAGES}
    stage_db: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
    for scheme in target.schemes:
        if scheme in target.calibrated and recipe.calibrate is None:
            continue
        pictures = recipe.calibrate if scheme in target.calibrated else None
        with tempfile.TemporaryDirectory() as work:
            asked = replace(recipe, quantize=Schemes(scheme), calibrate=pictures)
            done = export(
                asked, Path(work) / "s", progress=_named(scheme, progress), accept_all=True
            )
        if done.verification is None:
            raise PlanError(f"nothing here runs backend '{recipe.backend}', so nothing is measured")
        plan = done.bundle.plan
        costs += _costs(plan, done.verification, scheme)
        for stage in STAGES:
            of_stage = [c for c in costs if (c.stage, c.scheme) == (stage, scheme)]
            known = [EXACT_DB if c.psnr_db is None else c.psnr_db for c in of_stage]
            stage_db[stage][scheme] = EXACT_DB if scheme == "none" else min(known)
            stage_bytes[stage][scheme] = sum(c.bytes for c in of_stage)
        others = sum(stage_bytes[stage][scheme] for stage in ("vision", "decoder"))
        stage_bytes["head"][scheme] = plan.weights_bytes - others
    return Sensitivity(tuple(costs), stage_bytes, stage_db)


def _costs(plan: Plan[Any], verification: Verification, scheme: str) -> list[Cost]:
    found = []
    for block in plan.blocks:
        if block.stage in STAGES:
            calls = [b.psnr_db for b in verification.blocks if b.name == block.name]
            worst = min((db for db in calls if db is not None), default=None)
            found.append(Cost(block.name, block.stage, scheme, block.weights_bytes, worst))
    return found


def _spelled(chosen: dict[str, str]) -> str:
    """`w8a8,head=fp16`: the scheme of most stages first."""
    schemes = list(chosen.values())
    most = max(schemes, key=schemes.count)
    others = [f"{stage}={scheme}" for stage, scheme in chosen.items() if scheme != most]
    return ",".join([most, *others])


def _named(scheme: str, progress: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: progress(f"{scheme}: {line}")
