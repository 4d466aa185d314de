"""Whether a plan fits a named device, and which recipe would; calculated, without the device.

    limit    memory that one app may use before the system kills it; where that is not known, half
             of the memory (a rule of this file, not a figure of the device)
    budget   the limit less `RESERVE_BYTES`, for the app around the engine
    fits     weights + KV cache <= budget, everything in memory at once
    scheme   the most exact one that fits: most bits of the weights first, then of the activations
    block    the largest of 512, 256, … 8 MB at which the KV cache and two of the largest blocks fit
             the budget: one runs while the next is loaded
    floor    of a token: bytes of decoder and head / bandwidth, because each weight is read once

Weights count once, as in the plan. Packed copies of an engine, and activations, are not included;
none of this was measured on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from edgevlm.bundle.plan import Plan
from edgevlm.devices.shared.named import Device
from edgevlm.exporters.contract import find_target
from edgevlm.profiling.answers.text import bytes_per_token
from edgevlm.quantization.schemes import EXACT, Schemes, parse_scheme
from edgevlm.recipe import Recipe
from edgevlm.registry import KINDS
from edgevlm.units import MB

# For the app around the engine, its images and its windows. ONNX Runtime, Python and the embedded
# model together peak at 140 MB (README), which is within the budget and not this.
RESERVE_BYTES = 256 * MB
BLOCK_SIZES_BYTES = tuple(size * MB for size in (512, 256, 128, 64, 32, 16, 8))

Planner = Callable[[Recipe], Plan[Any]]


@dataclass(frozen=True)
class OfferedSchemes:
    """Schemes that a target offers for a recipe.

    Attributes:
        names: Schemes that need no calibration, in the target's order.
        unpacked: Schemes whose weights are float32 in memory.
    """

    names: tuple[str, ...]
    unpacked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Need:
    """The memory of a plan under one scheme.

    Attributes:
        quantize: The scheme.
        weights_bytes: Of all stages and the table, in memory.
        kv_bytes: Of the cache.
        needed_bytes: Both.
        fits: Whether they are within the budget.
        token_bytes: Weights of decoder and head, read for each token; 0 without any.
        token_floor_ms: Those / bandwidth; None where the bandwidth is not known, or no token is
            generated.
    """

    quantize: str
    weights_bytes: int
    kv_bytes: int
    needed_bytes: int
    fits: bool
    token_bytes: int
    token_floor_ms: float | None


@dataclass(frozen=True)
class Fit:
    """A plan compared with a device; `calculated`, none of it measured.

    Attributes:
        device: Name of the device.
        target: The recipe's target.
        limit_bytes: What one app may use.
        limit_from: Kind of its source (`observation`), or `half of memory` if there is none.
        reserve_bytes: Memory left to the app around the engine.
        budget_bytes: For `run --memory`.
        asked: The memory of the recipe as given.
        best: The most exact scheme that fits; if none does, the smallest.
        block_size_bytes: For `--block-size` with that scheme; None if not even two blocks fit.
        bandwidth_bytes_per_s: Of the device, if known.
        calculated: Always true: from published figures.
        not_measured: Why a value is None.
    """

    device: str
    target: str
    limit_bytes: int
    limit_from: str
    reserve_bytes: int
    budget_bytes: int
    asked: Need
    best: Need
    block_size_bytes: int | None
    bandwidth_bytes_per_s: int | None
    calculated: bool
    not_measured: dict[str, str]


def offered(recipe: Recipe) -> OfferedSchemes:
    """The schemes of a recipe's target and backend that need no calibration."""
    target = find_target(recipe.target)
    names = target.schemes_of(target.backend(recipe.backend))
    uncalibrated = tuple(name for name in names if name not in target.calibrated)
    return OfferedSchemes(uncalibrated, target.unpacked)


def fit(device: Device, recipe: Recipe, schemes: OfferedSchemes, make: Planner) -> Fit:
    """Compare the plans of a recipe, in each scheme, with a device.

    Args:
        device: The figures.
        recipe: What was asked for.
        schemes: Schemes that its target offers.
        make: Plans a recipe; called once for each scheme and block size.
    """
    source = device.sources.get("app_limit_bytes")
    limit = device.app_limit_bytes or device.memory_bytes // 2
    budget = max(limit - RESERVE_BYTES, 0)
    planner = cache(lambda asked: make(_in_memory(asked, schemes.unpacked)))
    best = _best(device, recipe, schemes, planner, budget)
    chosen = replace(recipe, quantize=Schemes(best.quantize), calibrate=None)
    block_size = _block_size(chosen, planner, budget)
    why = {}
    if device.bandwidth_bytes_per_s is None:
        why["token_floor_ms"] = f"no bandwidth: {device.missing['bandwidth_bytes_per_s']}"
    elif best.token_floor_ms is None:
        why["token_floor_ms"] = "an embedding has no tokens"
    if block_size is None:
        why["block_size_bytes"] = "two of the smallest blocks and the KV cache exceed the budget"
    return Fit(
        device=device.name,
        target=recipe.target,
        limit_bytes=limit,
        limit_from=source.kind if source else "half of memory",
        reserve_bytes=RESERVE_BYTES,
        budget_bytes=budget,
        asked=_need(device, recipe, planner, budget),
        best=best,
        block_size_bytes=block_size,
        bandwidth_bytes_per_s=device.bandwidth_bytes_per_s,
        calculated=True,
        not_measured=why,
    )


def _need(device: Device, recipe: Recipe, planner: Planner, budget: int) -> Need:
    """The memory of one recipe."""
    plan = planner(recipe)
    kv, read = _kv_bytes(plan), bytes_per_token(plan)
    total, bandwidth = plan.weights_bytes + kv, device.bandwidth_bytes_per_s
    return Need(
        quantize=str(recipe.quantize),
        weights_bytes=plan.weights_bytes,
        kv_bytes=kv,
        needed_bytes=total,
        fits=total <= budget,
        token_bytes=read,
        token_floor_ms=read / bandwidth * 1e3 if bandwidth and read else None,
    )


def _best(
    device: Device, recipe: Recipe, schemes: OfferedSchemes, planner: Planner, budget: int
) -> Need:
    """The most exact scheme that fits; the smallest if none does."""
    needs: list[Need] = []
    for name in sorted(schemes.names, key=exactness, reverse=True):
        scheme = replace(recipe, quantize=Schemes(name), calibrate=None)
        needs.append(_need(device, scheme, planner, budget))
        if needs[-1].fits:
            return needs[-1]
    return min(needs, key=lambda need: need.needed_bytes)


def _block_size(recipe: Recipe, planner: Planner, budget: int) -> int | None:
    """The largest block size at which two blocks and the KV cache are within the budget."""
    for size in BLOCK_SIZES_BYTES:
        if pair_bytes(planner(replace(recipe, block_size_bytes=size))) <= budget:
            return size
    return None


def exactness(scheme: str) -> tuple[int, int]:
    """Bits of weights and of activations: `none` is (32, 32), `fp16` (16, 16), `w4g32a8` (4, 8).

    A palette such as `p6` is computed in float16: (6, 16).
    """
    parsed = parse_scheme(scheme)
    return parsed.weight_bits, parsed.activation_bits


def pair_bytes(plan: Plan[Any]) -> int:
    """Bytes of the KV cache and two of the largest blocks."""
    return _kv_bytes(plan) + 2 * max(block.weights_bytes for block in plan.blocks)


def _kv_bytes(plan: Plan[Any]) -> int:
    """Bytes of the KV cache; 0 for a kind without one."""
    found: int = KINDS.load(plan.kind).facts(plan).get("kv_bytes", 0)
    return found


def _in_memory(recipe: Recipe, unpacked: tuple[str, ...]) -> Recipe:
    """The recipe with the schemes that the weights have in memory."""
    loaded = recipe.quantize.replaced(lambda name: EXACT if name in unpacked else name)
    return replace(recipe, quantize=loaded)
