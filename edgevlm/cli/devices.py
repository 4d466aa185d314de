"""`edgevlm devices`: what can be reached now, and the named devices with what is known of each."""

from __future__ import annotations

from edgevlm.cli.shared import options as o
from edgevlm.devices.shared import named
from edgevlm.devices.shared.named import Device
from edgevlm.registry import DEVICES


def main(json: o.Json = False) -> None:
    """List what `profile --device` reaches now, and named devices with their figures.

    --json has the source of each figure.
    """
    with o.progress() as step:
        reachable = []
        for name in DEVICES.names():
            step(f"look for devices: {name}")
            reachable += DEVICES.load(name).reachable()
    devices = [named.load(name) for name in named.names()]
    here = o.table(["--device", "now", ""], [[r.device, r.state, r.note] for r in reachable])
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
    text = o.table(["device", "os", "memory", "one app", "bandwidth", "NPU", "target"], rows)
    text = f"{here}\n\n{text}"
    text += "\n\n~ seen by users, or derived from other figures; - not known, --json says why"
    o.answer({"reachable": reachable, "named": devices}, text, json)


def _figure(device: Device, name: str, unit: str) -> str:
    """A figure in 10^9, marked if it is not somebody's statement."""
    value = getattr(device, name)
    if value is None:
        return "-"
    guess = device.sources[name].kind in ("observation", "derived")
    return f"{'~' * guess}{value / 1e9:.1f} {unit}"


def _npu(device: Device) -> str:
    if device.npu is None:
        return "-"
    return device.npu + (f", {device.npu_tops:g} TOPS" if device.npu_tops else "")
