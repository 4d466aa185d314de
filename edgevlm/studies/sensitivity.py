"""The loss of each scheme on each block, measured, and the mixed recipe for a size.

The model is exported once in every scheme of the target, into a temporary folder, and verified:
psnr_db of a block is that of its worst function against PyTorch on the same inputs. A
recipe has a scheme for each stage of the kind that has weights; that of the last one (the head of a
vlm, the text encoder of an encoder) is the embedding table's too. Of all mixtures that fit a size,
the one whose worst stage is best is proposed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
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
from edgevlm.registry import KINDS

EXACT_DB = 200.0  # of float32: more than any rounding gives


@dataclass(frozen=True)
class SchemeLoss:
    """A block under a scheme; `psnr_db` is None where nothing differs from PyTorch."""

    block: str
    stage: str
    scheme: str
    bytes: int
    psnr_db: float | None


@dataclass(frozen=True)
class Proposal:
    """A mixture: the value of `--quantize`, its bytes, psnr_db of its worst block."""

    quantize: str
    bytes: int
    psnr_db: float


@dataclass(frozen=True)
class Sensitivity:
    """All measurements; `stage_bytes` and `stage_db` are by stage and scheme.

    The bytes of the last stage are those of the embedding table too; `embed` is whether the recipe
    has to say so, since the table may have a scheme of its own.
    """

    losses: tuple[SchemeLoss, ...]
    stage_bytes: dict[str, dict[str, int]]
    stage_db: dict[str, dict[str, float]]
    embed: bool = False

    def propose(self, size: int) -> Proposal:
        """The mixture of at most `size` bytes whose worst stage is best.

        Raises:
            PlanError: If none is so small; the message has the size of the smallest.
        """
        schemes = list(next(iter(self.stage_bytes.values())))
        mixtures = []
        for mixture in product(schemes, repeat=len(self.stage_bytes)):
            chosen = dict(zip(self.stage_bytes, mixture, strict=True))
            total = sum(self.stage_bytes[stage][scheme] for stage, scheme in chosen.items())
            each = sorted(self.stage_db[stage][scheme] for stage, scheme in chosen.items())
            mixtures.append((each, -total, _spelled(chosen, self.embed)))
        fitting = [item for item in mixtures if -item[1] <= size]
        if not fitting:
            least = min(-total for _, total, _ in mixtures)
            raise PlanError(f"no mixture of schemes takes {size:,} bytes; the least is {least:,}")
        each, total, quantize = max(fitting)
        return Proposal(quantize, -total, each[0])


def measure(recipe: Recipe, progress: Callable[[str], None]) -> Sensitivity:
    """Export and verify the model in every scheme of the recipe's target.

    Schemes that need calibration images are left out if the recipe has none.
    """
    target = find_target(recipe.target)
    losses: list[SchemeLoss] = []
    stage_bytes: dict[str, dict[str, int]] = {}
    stage_db: dict[str, dict[str, float]] = {}
    embed = False
    for scheme in target.schemes:
        if scheme in target.calibrated and recipe.calibrate is None:
            continue
        plan, verification = _exported(recipe, scheme, scheme in target.calibrated, progress)
        stages = _stages(plan)
        measured = _losses(plan, verification, scheme, stages)
        for stage in stages:
            of_stage = [loss for loss in measured if loss.stage == stage]
            known = [EXACT_DB if loss.psnr_db is None else loss.psnr_db for loss in of_stage]
            worst = EXACT_DB if scheme == "none" else min(known)
            stage_db.setdefault(stage, {})[scheme] = worst
            stage_bytes.setdefault(stage, {})[scheme] = sum(loss.bytes for loss in of_stage)
        others = sum(stage_bytes[stage][scheme] for stage in stages[:-1])
        stage_bytes[stages[-1]][scheme] = plan.weights_bytes - others
        tied = any(block.shares for block in plan.blocks)
        formats = {table.dtype for table in plan.host.tables.values()}
        embed = embed or (not tied and bool(formats - {"f32"}))
        losses += measured
    return Sensitivity(tuple(losses), stage_bytes, stage_db, embed)


def _exported(
    recipe: Recipe, scheme: str, calibrated: bool, progress: Callable[[str], None]
) -> tuple[Plan[Any], Verification]:
    """The model exported in one scheme into a temporary folder, and verified."""
    pictures = recipe.calibrate if calibrated else None
    asked = replace(recipe, quantize=Schemes(scheme), calibrate=pictures)
    with tempfile.TemporaryDirectory() as work:
        done = export(asked, Path(work) / "s", progress=_named(scheme, progress), accept_all=True)
    if done.verification is None:
        raise PlanError(f"nothing here runs backend '{recipe.backend}', so nothing is measured")
    return done.bundle.plan, done.verification


def _stages(plan: Plan[Any]) -> list[str]:
    """The stages that the plan has and schemes quantize, in order."""
    present = {block.stage for block in plan.blocks}
    stages = KINDS.load(plan.kind).STAGES
    return [stage.name for stage in stages if stage.quantized and stage.name in present]


def _losses(
    plan: Plan[Any], verification: Verification, scheme: str, stages: Sequence[str]
) -> list[SchemeLoss]:
    losses = []
    for block in plan.blocks:
        if block.stage in stages:
            calls = [b.psnr_db for b in verification.blocks if b.name == block.name]
            worst = min((db for db in calls if db is not None), default=None)
            losses.append(SchemeLoss(block.name, block.stage, scheme, block.weights_bytes, worst))
    return losses


def _spelled(chosen: dict[str, str], embed: bool) -> str:
    """`w8a8,head=fp16`: the scheme of most stages first; the table's is that of the last stage."""
    schemes = list(chosen.values())
    most = max(schemes, key=schemes.count)
    named = chosen | ({"embed": schemes[-1]} if embed else {})
    others = [f"{stage}={scheme}" for stage, scheme in named.items() if scheme != most]
    return ",".join([most, *others])


def _named(scheme: str, progress: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: progress(f"{scheme}: {line}")
