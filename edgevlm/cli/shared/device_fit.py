"""The lines of `edgevlm plan --for`: the fit of a plan to a named device."""

from __future__ import annotations

from edgevlm.devices.shared.fit import Fit, Need
from edgevlm.units import MB, megabytes


def beside(fit: Fit) -> str:
    """The fit to the device, in lines."""
    limit, asked, best = megabytes(fit.limit_bytes), fit.asked, fit.best
    known = f"one app may use {limit} ({fit.limit_from})"
    if fit.limit_from == "half of memory":
        known = f"the limit of one app is not known, half of the memory is {limit}"
    choice = f"no scheme of {fit.target} fits in memory, the smallest is --quantize {best.quantize}"
    if best.fits:
        choice = f"most exact scheme of {fit.target} that fits: --quantize {best.quantize}"
    cache, smallest, pair = "", "", "two blocks fit"
    if asked.kv_bytes:
        needed = megabytes(asked.needed_bytes)
        cache = f" + KV cache {megabytes(asked.kv_bytes)} = {needed}"
        smallest, pair = " and the KV cache", "two blocks and the KV cache fit"
    blocks = f"two of the smallest blocks{smallest} do not fit"
    if fit.block_size_bytes:
        blocks = f"--block-size {fit.block_size_bytes // MB}MB: {pair}"
    return "\n".join(
        [
            f"for {fit.device}: {known}; without {megabytes(fit.reserve_bytes)} for the app"
            f" around the engine: run --memory {fit.budget_bytes // MB}MB",
            f"{asked.quantize}: weights {megabytes(asked.weights_bytes)}{cache}:"
            f" {'fits' if asked.fits else 'does not fit'}",
            f"{choice}, {megabytes(best.needed_bytes)}",
            blocks,
            *([_floor(fit, asked)] if asked.token_bytes != best.token_bytes else []),
            *([_floor(fit, best)] if best.token_bytes else []),
            "calculated from published figures, not measured on the device; copies by the engine"
            " are not included",
        ]
    )


def _floor(fit: Fit, need: Need) -> str:
    reads = f"{need.quantize}: a token reads {megabytes(need.token_bytes)} of decoder and head"
    if need.token_floor_ms is None or fit.bandwidth_bytes_per_s is None:
        return f"{reads}; {fit.not_measured['token_floor_ms']}"
    speed = fit.bandwidth_bytes_per_s / 1e9
    return f"{reads}, {need.token_floor_ms:.1f} ms or more at {speed:.1f} GB/s"
