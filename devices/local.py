"""`local`: this machine, in this process."""

from __future__ import annotations

from edgevlm.devices.shared.contract import Job, Reachable, Step
from edgevlm.errors import DeviceError
from edgevlm.profiling import measure as profiling
from edgevlm.profiling.document import Profile
from edgevlm.profiling.machine.identity import machine
from edgevlm.runtimes.loading import load_loop


def profile(address: str, job: Job, progress: Step) -> Profile:
    """Measure here.

    Raises:
        DeviceError: If there is an address, a runner or a log: this machine needs none.
    """
    if address:
        raise DeviceError(f"device 'local' is this machine and takes no address, got '{address}'")
    job.without_runner("local")
    if job.log is not None:
        raise DeviceError("--log keeps the messages of another device; leave it out for 'local'")
    loop = load_loop(job.bundle, job.engine, job.threads, job.memory_bytes, progress)
    return profiling.profile(loop, job.request, progress)


def reachable() -> list[Reachable]:
    """Always."""
    here = machine()
    return [Reachable("local", "ready", f"{here.processor}, {here.cores} cores, {here.system}")]
