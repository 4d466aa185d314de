"""`ios[:DEVICE]`: an iPhone or iPad, from a Mac with Xcode 15, by `xcrun devicectl`.

The app `APP` runs bundles on the device; `--runner` installs it from an .app or .ipa that is
signed for the device. Its folder Documents/edgevlm holds the files of docs/devices.md.

`devicectl` copies files to and from the container of an app that is signed for development, but it
can neither hash nor delete them. So NAME.copied.json beside the bundle lists the copied files, and
an empty manifest.json marks an incomplete bundle; the app checks hashes as any reader does.

NOT TESTED ON A DEVICE: these command lines follow the tool's own help and were tested against a
scripted `xcrun` only. Least certain: whether `copy to` creates the folders of its destination.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import MANIFEST
from edgevlm.devices.shared import contract as t
from edgevlm.devices.shared.contract import Job, Reachable, Step, one_line
from edgevlm.errors import DeviceError
from edgevlm.libraries import program
from edgevlm.profiling.document import Profile

APP, FOLDER = "org.edgevlm.app", "Documents/edgevlm"
POLL_S = 2.0
# Bytes between two copies of the list: an interrupted copy repeats at most these.
LIST_BYTES = 64 * 10**6
NO_MAC = "device 'ios' needs a Mac with Xcode 15 or newer: 'xcrun' is not installed"


def profile(address: str, job: Job, progress: Step) -> Profile:
    """Measure on an iPhone or iPad.

    Raises:
        DeviceError: If no device is known or ready, the app is missing, or the run fails.
    """
    bundle = t.opened(job)
    if job.runner is not None and job.runner.suffix not in (".app", ".ipa"):
        raise DeviceError(f"'{job.runner}' is no runner for iOS: expected an .app or .ipa")
    if job.runner is not None and not job.runner.exists():
        raise DeviceError(f"no runner at '{job.runner}'")
    with tempfile.TemporaryDirectory() as folder:
        phone = IosDevice(_chosen(address), Path(folder))
        if job.runner is not None:
            progress(f"{phone.name}: install {job.runner.name}")
            phone.ctl("install", "app", str(job.runner))
        phone.check_app()
        phone.put_bundle(bundle, progress)
        return phone.measure(job, bundle, progress)


def reachable() -> list[Reachable]:
    """Devices that devicectl lists, each with what to do if it is not ready."""
    if program("xcrun") is None:
        return [Reachable("ios", "not here", NO_MAC)]
    try:
        devices = _devices()
    except DeviceError as cause:
        return [Reachable("ios", "failed", str(cause))]
    listed = []
    for identifier, (name, remedy) in devices.items():
        listed.append(
            Reachable(f"ios:{identifier}", "not ready" if remedy else "ready", remedy or name)
        )
    return listed or [
        Reachable("ios", "none", "no device is known; connect one and trust this Mac")
    ]


class IosDevice:
    """One device; `folder` is a local folder for files to send and for fetched files."""

    def __init__(self, identifier: str, folder: Path) -> None:
        self.identifier, self.name, self.local = identifier, f"ios:{identifier}", folder

    def ctl(self, *words: str) -> dict[str, Any]:
        """The JSON answer of `devicectl device WORDS`.

        Raises:
            DeviceError: If it fails.
        """
        return _ctl("device", *words[:2], "--device", self.identifier, *words[2:])

    def check_app(self) -> None:
        """Refuse a device without the app."""
        apps = self.ctl("info", "apps", "--bundle-id", APP).get("apps")
        if not apps:
            raise DeviceError(
                f"{self.name} lacks the app {APP}; build it for the device, and"
                " install it with --runner FILE or with Xcode"
            )

    def send(self, source: Path, path: str) -> None:
        """Copy a file into our folder."""
        self.ctl("copy", "to", *_container(), "--source", str(source),
                 "--destination", f"{FOLDER}/{path}")  # fmt: skip

    def fetch(self, path: str, limit: int) -> bytes | None:
        """A file of our folder; None if it does not exist."""
        target = self.local / "fetched"
        target.unlink(missing_ok=True)
        try:
            self.ctl("copy", "from", *_container(), "--source", f"{FOLDER}/{path}",
                     "--destination", str(target))  # fmt: skip
        except DeviceError:
            return None
        if not target.is_file() or target.is_symlink():
            return None
        if target.stat().st_size > limit:
            raise DeviceError(
                f"{self.name} sent more than {limit} bytes, the most that is accepted"
            )
        return target.read_bytes()

    def put_bundle(self, bundle: Bundle, progress: Step) -> None:
        """Copy the files of a bundle that differ from the list of an earlier copy."""
        folder = f"bundles/{t.folder_of(bundle)}"
        copied = self._copied(folder)
        missing = [f for f in bundle.plan.files if copied.get(f.path) != f.sha256]
        manifest = (bundle.path / MANIFEST).read_bytes()
        if not missing and self.fetch(f"{folder}/{MANIFEST}", len(manifest)) == manifest:
            return
        (self.local / "empty").write_bytes(b"")
        self.send(self.local / "empty", f"{folder}/{MANIFEST}")
        # Files that are about to be replaced are taken off the list.
        copied = {f.path: f.sha256 for f in bundle.plan.files if f not in missing}
        self._send_copied(folder, copied)
        total, done, since = sum(f.bytes for f in missing), 0, 0
        for file in missing:
            progress(f"{self.name}: copy {folder}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB")
            self.send(bundle.file(file.path), f"{folder}/{file.path}")
            copied[file.path] = file.sha256
            done, since = done + file.bytes, since + file.bytes
            if since >= LIST_BYTES or file is missing[-1]:
                self._send_copied(folder, copied)
                since = 0
        self.send(bundle.path / MANIFEST, f"{folder}/{MANIFEST}")

    def measure(self, job: Job, bundle: Bundle, progress: Step) -> Profile:
        """One run: request in, app started, profile out."""
        run = f"runs/{secrets.token_hex(6)}"
        request = self.local / t.REQUEST
        request.write_text(t.request_text(job, bundle), "utf-8")
        self.send(job.image, f"{run}/{t.PICTURE}")
        self.send(request, f"{run}/{t.REQUEST}")
        launch = ("process", "launch", "--terminate-existing", APP, "--run", run)
        pid = self.ctl(*launch).get("process", {}).get("processIdentifier")
        try:
            return self._wait(run, pid, job, bundle, progress)
        finally:
            if job.log is not None:
                t.keep_log(job, self.fetch(f"{run}/{t.LOG}", t.LOG_BYTES) or b"")

    def _wait(self, run: str, pid: object, job: Job, bundle: Bundle, progress: Step) -> Profile:
        ended = False
        while True:
            if (text := self.fetch(f"{run}/{t.PROFILE}", t.PROFILE_BYTES)) is not None:
                return t.received(text, job, bundle, self.name)
            if (text := self.fetch(f"{run}/{t.ERROR}", t.LOG_BYTES)) is not None:
                raise DeviceError(f"{self.name}: {one_line(text.decode('utf-8', 'replace'))}")
            if ended:
                raise DeviceError(f"{self.name}: the app on the device ended without an answer")
            running = self.ctl("info", "processes").get("runningProcesses", [])
            ended = all(process.get("processIdentifier") != pid for process in running)
            log = (self.fetch(f"{run}/{t.LOG}", t.LOG_BYTES) or b"").decode("utf-8", "replace")
            if lines := log.split("\n")[:-1]:
                progress(f"{self.name}: {one_line(lines[-1])}")
            time.sleep(POLL_S)

    def _send_copied(self, folder: str, copied: dict[str, str]) -> None:
        """Send the list of copied files."""
        note = self.local / "note"
        note.write_text(json.dumps(copied), "utf-8")
        self.send(note, f"{folder}.copied.json")

    def _copied(self, folder: str) -> dict[str, str]:
        """sha256 of each copied file, from the list of an earlier copy."""
        try:
            copied = json.loads(self.fetch(f"{folder}.copied.json", t.LOG_BYTES) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return copied if isinstance(copied, dict) else {}


def _container() -> tuple[str, ...]:
    return ("--domain-type", "appDataContainer", "--domain-identifier", APP)


def _chosen(address: str) -> str:
    """Identifier of the device that `address` names, after a check that it is ready.

    Raises:
        DeviceError: If there is none, several, or it is not ready.
    """
    if program("xcrun") is None:
        raise DeviceError(NO_MAC)
    devices = _devices()
    names = ", ".join(f"ios:{identifier}" for identifier in devices)
    if not devices:
        raise DeviceError("no iOS device is known; connect one and trust this Mac on its screen")
    if not address and len(devices) > 1:
        raise DeviceError(f"several iOS devices are known; choose one with --device: {names}")
    chosen = address or next(iter(devices))
    if chosen not in devices:
        raise DeviceError(f"no device 'ios:{one_line(chosen)}' is known; known: {names}")
    if remedy := devices[chosen][1]:
        raise DeviceError(f"ios:{chosen} is not ready: {remedy}")
    return chosen


def _devices() -> dict[str, tuple[str, str]]:
    """Name of each device by its identifier, and what to do if it is not ready."""
    devices = {}
    for device in _ctl("list", "devices").get("devices", []):
        hardware, link = (
            device.get("hardwareProperties", {}),
            device.get("connectionProperties", {}),
        )
        properties, remedy = device.get("deviceProperties", {}), ""
        if hardware.get("platform") not in ("iOS", "iPadOS"):
            continue
        if link.get("pairingState") != "paired":
            remedy = "unlock it and trust this Mac on its screen"
        elif properties.get("developerModeStatus") == "disabled":
            remedy = "turn on Developer Mode in its Settings, Privacy & Security"
        elif link.get("tunnelState") == "unavailable":
            remedy = "connect it by cable, or to the same network, and unlock it"
        name = f"{properties.get('name')}, {hardware.get('marketingName')}"
        devices[str(device.get("identifier"))] = (one_line(name), remedy)
    return devices


def _ctl(*words: str) -> dict[str, Any]:
    """`xcrun devicectl WORDS`: the `result` of its JSON answer.

    Raises:
        DeviceError: If it fails; its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        # The option comes early: devicectl passes what follows an app's name to the app.
        tool = [program("xcrun") or "xcrun", "devicectl"]
        command = [*tool, *words[:3], "--json-output", str(answer), *words[3:]]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise DeviceError(f"devicectl failed: {one_line(lines[0])}")
        try:
            result = json.loads(answer.read_text("utf-8")).get("result", {})
        except (OSError, ValueError, AttributeError, RecursionError) as cause:
            raise DeviceError(
                "devicectl gave no JSON answer; Xcode 15 or newer is needed"
            ) from cause
    return result if isinstance(result, dict) else {}
