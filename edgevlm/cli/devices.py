"""`edgevlm devices`: devices that can be reached now, and named devices with their figures."""

from __future__ import annotations

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, progress, table
from edgevlm.devices.shared import named
from edgevlm.devices.shared.contract import Reachable
from edgevlm.devices.shared.named import Device
from edgevlm.registry import DEVICES


def main(json: o.Json = False) -> None:
    """List reachable devices, and named devices with their figures.

    The first table has values for `profile --device`, the second for `plan --for`.
    --json adds the source of each figure.
    """
    with progress() as step:
        reachable = []
        for name in DEVICES.names():
            step(f"search for devices: {name}")
            reachable += DEVICES.load(name).reachable()
    devices = [named.load(name) for name in named.names()]
    answer({"reachable": reachable, "named": devices}, _text(reachable, devices), json)


def _text(reachable: list[Reachable], devices: list[Device]) -> str:
    here = table(["--device", "state", "note"], [[r.device, r.state, r.note] for r in reachable])
    rows = [
        [
            d.name,
            d.os,
            _figure(d, "memory_bytes", "GB"),
            _figure(d, "app_limit_bytes", "GB"),
            _figure(d, "bandwidth_bytes_per_s", "GB/s"),
            _npu(d),
            d.target,
        ]
        for d in devices
    ]
    known = table(["device", "os", "memory", "app limit", "bandwidth", "NPU", "target"], rows)
    note = "~ observed by users, or derived from other figures; - not known, reason in --json"
    return "\n\n".join([here, known, note])


def _figure(device: Device, name: str, unit: str) -> str:
    """A figure in 10^9, marked if it is not a published statement."""
    value = getattr(device, name)
    if value is None:
        return "-"
    guess = device.sources[name].kind in ("observation", "derived")
    return f"{'~' * guess}{value / 1e9:.1f} {unit}"


def _npu(device: Device) -> str:
    if device.npu is None:
        return "-"
    return device.npu + (f", {device.npu_tops:g} TOPS" if device.npu_tops else "")
