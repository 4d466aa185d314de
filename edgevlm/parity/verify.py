"""Parity of a bundle with PyTorch: block by block, and end to end with the model's own forward.

    1. The bundle's plan is made again from its recipe and its checkpoint.
    2. The driver of the plan's kind runs the model in PyTorch and the bundle in an engine.
    3. Each call of a block is compared with the same block in PyTorch on the same inputs
       (`compare`), and the answers with each other.
    4. What was measured is checked against its bounds (`checks`): a bundle is good if all pass.

A driver is the module of its kind's name in this package, with a function

    verify(calls: BlockCalls, model, photos) -> Verification
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import Plan
from edgevlm.errors import BundleError, RecipeError
from edgevlm.models.find import find
from edgevlm.models.quiet import without_kernel_advice
from edgevlm.models.weights.paging import KEPT_BYTES
from edgevlm.parity.calls import BlockCalls
from edgevlm.parity.verification import Verification
from edgevlm.planning.plan import Planned, make_plan
from edgevlm.registry import KINDS

PHOTOS = tuple(Path(__file__).parents[1] / "photos" / name for name in ("flower.jpg", "stream.jpg"))


def verify(
    path: str | Path,
    model: str | None = None,
    photos: tuple[Path, ...] = PHOTOS,
    progress: Callable[[str], None] = lambda _: None,
    engine: str | None = None,
) -> Verification:
    """Check a bundle on disk against its checkpoint.

    Args:
        path: The bundle.
        model: Checkpoint to compare with; None takes the manifest's source.
        photos: Two images; the first is used for parity.
        progress: Called with one line per step.
        engine: Name of the engine; None takes the first that runs the bundle's target.

    Raises:
        BundleError: If the bundle is damaged.
        ModelError: If the checkpoint cannot be read.
        RecipeError: If the checkpoint is another one than the bundle was made from.
    """
    bundle = Bundle.open(path)
    source = bundle.plan.source
    checkpoint = find(model or source.model, source.revision)
    if checkpoint.config_hash != source.config_hash:
        raise RecipeError(
            f"'{checkpoint.model}' is not the checkpoint of this bundle: its config.json differs;"
            " name the right one with --model"
        )
    planned = make_plan(bundle.plan.recipe, checkpoint)
    if _outline(planned.plan) != _outline(bundle.plan):
        raise BundleError(
            f"'{path}' was not made from its recipe: another plan comes out; export it again"
        )
    if planned.plan.recipe.trial:
        progress(planned.plan.recipe.trial)
    progress("load the model")
    loaded = planned.checkpoint.load_model(KEPT_BYTES)
    parts = planned.parts(loaded)
    return verify_model(bundle, planned, loaded, parts, progress, photos, engine, as_run=True)


def verify_model(
    bundle: Bundle,
    planned: Planned,
    model: Any,
    parts: Any,
    progress: Callable[[str], None],
    photos: tuple[Path, ...] = PHOTOS,
    engine: str | None = None,
    as_run: bool = False,
) -> Verification:
    """`verify` for a bundle and a model that are already open.

    Args:
        bundle: The bundle.
        planned: Its plan, made again.
        model: The checkpoint's model.
        parts: The parts of the model.
        progress: Called with one line per step.
        photos: Two images; the first is used for parity.
        engine: Name of the engine; None takes the first that runs the bundle's target.
        as_run: Load blocks as `run` does, from what the engine built on this machine; else from the
            bundle alone, so that an export builds nothing.
    """
    driver = importlib.import_module(f"{__package__}.{bundle.plan.kind}")
    with torch.no_grad(), without_kernel_advice():
        calls = BlockCalls(bundle, planned, parts, progress, engine, as_run)
        result: Verification = driver.verify(calls, model, photos)
    return result


def _outline(plan: Plan[Any]) -> list[object]:
    """What parity relies on: which parts are in which block, and the tensors that leave it."""
    blocks = [(b.name, b.span, [(f.name, f.outputs) for f in b.functions]) for b in plan.blocks]
    return [*KINDS.load(plan.kind).outline(plan.host), *blocks]
