"""The lines of `edgevlm plan --for`: a plan beside a named device."""

from __future__ import annotations

from edgevlm.devices.shared.fit import Fit, Need
from edgevlm.units import MB, megabytes


def beside(found: Fit) -> str:
    """What fits the device, in lines."""
    limit, asked, best = megabytes(found.limit_bytes), found.asked, found.best
    known = f"one app may use {limit} ({found.limit_from})"
    if found.limit_from == "half of memory":
        known = f"no limit of one app is known, half of the memory is {limit}"
    choice = f"no scheme of {found.target} fits whole, the smallest is --quantize {best.quantize}"
    if best.fits:
        choice = f"most exact scheme of {found.target} that fits: --quantize {best.quantize}"
    cache, smallest, pair = "", "", "a block and the next one fit"
    if asked.kv_bytes:
        needed = megabytes(asked.needed_bytes)
        cache = f" + KV cache {megabytes(asked.kv_bytes)} = {needed}"
        smallest, pair = " beside the KV cache", "a block, the next one and the KV cache fit"
    blocks = f"not even two of the smallest blocks fit{smallest}"
    if found.block_size_bytes:
        blocks = f"--block-size {found.block_size_bytes // MB}MB: {pair}"
    return "\n".join(
        [
            f"for {found.device}: {known}; without {megabytes(found.reserve_bytes)} for the app"
            f" around the engine: run --memory {found.budget_bytes // MB}MB",
            f"{asked.quantize}: weights {megabytes(asked.weights_bytes)}{cache}:"
            f" {'fits' if asked.fits else 'does not fit'}",
            f"{choice}, {megabytes(best.needed_bytes)}",
            blocks,
            *([_floor(found, asked)] if asked.token_bytes != best.token_bytes else []),
            *([_floor(found, best)] if best.token_bytes else []),
            "calculated from published figures, not measured on the device; copies that an engine"
            " makes come on top",
        ]
    )


def _floor(found: Fit, need: Need) -> str:
    reads = f"{need.quantize}: a token reads {megabytes(need.token_bytes)} of decoder and head"
    if need.token_floor_ms is None or found.bandwidth_bytes_per_s is None:
        return f"{reads}; {found.not_measured['token_floor_ms']}"
    speed = found.bandwidth_bytes_per_s / 1e9
    return f"{reads}, {need.token_floor_ms:.1f} ms or more at {speed:.1f} GB/s"
