"""`adb[:SERIAL]`: an Android phone, by Android's own `adb`.

The runner on the phone is not part of this package. `--runner FILE` installs it there once; the
files that it reads and writes are those of docs/devices.md:

    a program    pushed to /data/local/tmp/edgevlm/program, run as `runner runs/ID` in that folder's
                 parent; it prints its steps, and ends when its stdin does
    an .apk      installed; the app `PACKAGE` has its own folder, of which `edgevlm` is ours. It is
                 started with the run's folder, and its files are polled every second

Files are copied by `adb push`: an interrupted file starts again, a bundle continues with it.
Scripts need the exit codes of Android 7 (`shell_v2`). Tested with the real adb and a scripted
phone; nothing here has been tested on a real phone, and the app not at all.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgevlm.devices.shared import contract as t
from edgevlm.devices.shared.contract import Job, Reachable, Step, one_line
from edgevlm.devices.shared.shell import AGAIN, SMALL, File, Shell
from edgevlm.errors import DeviceError
from edgevlm.libraries import program
from edgevlm.profiling.document import Profile

PACKAGE, ACTIVITY = "org.edgevlm.app", ".ProfileActivity"
PROGRAM_FOLDER = "/data/local/tmp/edgevlm"
APP_FOLDER = f"/sdcard/Android/data/{PACKAGE}/files/edgevlm"
POLL_S = 1.0
READY = "device"
# What to do on the phone, by the state that adb reports.
STATES = {
    "unauthorized": "unlock it and allow USB debugging for this computer on its screen",
    "authorizing": "unlock it and allow USB debugging for this computer on its screen",
    "offline": "unplug it and plug it in again, or turn its USB debugging off and on",
    "connecting": "wait a moment, or unplug it and plug it in again",
    "no permissions": "this user may not open it: install adb's udev rules, then plug it in again",
    "recovery": "restart it: it is in recovery mode",
    "sideload": "restart it: it waits for an update",
    "bootloader": "restart it: it is in its bootloader",
}
NONE = "no phone is connected; plug one in with 'USB debugging' on in its Developer options"


def profile(address: str, job: Job, progress: Step) -> Profile:
    """Measure on a phone.

    Raises:
        DeviceError: If no phone is connected or ready, it has no runner, or the run fails.
    """
    bundle = t.opened(job)
    _check_runner(job.runner)
    serial = _chosen(address)
    if "shell_v2" not in _adb("-s", serial, "features").split():
        raise DeviceError(f"adb:{serial} is too old: Android 7 or newer is needed")
    is_app = _is_app(serial, job.runner, progress)
    phone = AndroidPhone(serial, APP_FOLDER if is_app else PROGRAM_FOLDER)
    with phone.connected(progress):
        if job.runner is not None and not is_app:
            phone.put("program", [File.of("runner", job.runner)], progress)
        phone.put_bundle(bundle, progress)

        def start(run: str) -> str:
            phone.began = phone.sh("date '+%m-%d %H:%M:%S.000'").strip()
            if is_app:
                return phone.run_app(run, progress)
            code, errors = phone.stream(
                f"chmod 700 program/runner; ./program/runner {run}", progress
            )
            if code in (126, 127):
                why = one_line(errors)
                return f"the runner cannot be executed on the phone; is it built for it? {why}"
            return f"the runner on the phone ended with exit code {code}; {one_line(errors[-200:])}"

        return phone.measure(job, bundle, start)


def reachable() -> list[Reachable]:
    """Phones that adb lists, each with what to do if it is not ready."""
    try:
        phones = _phones()
    except DeviceError as cause:
        state = "failed" if program("adb") else "not installed"
        return [Reachable("adb", state, str(cause))]
    return [
        Reachable(f"adb:{serial}", "ready" if state == READY else state, STATES.get(state, note))
        for serial, (state, note) in phones.items()
    ] or [Reachable("adb", "none", NONE)]


class AndroidPhone(Shell):
    """One phone; `began` is the phone's time at the start of the run."""

    resumes = False

    def __init__(self, serial: str, folder: str) -> None:
        super().__init__(f"adb:{serial}", folder)
        self.serial, self.began = serial, ""

    def argv(self, script: str) -> list[str]:
        """`adb shell` runs it with the phone's `sh`."""
        return [_program(), "-s", self.serial, "shell", script]

    def link_failure(self, code: int, errors: str) -> str | None:
        """One line if adb no longer lists the phone; other errors may be the script's own."""
        if _phones().get(self.serial, ("gone", ""))[0] == READY:
            return None
        return f"the link to {self.name} was cut; plug the phone in again, and {AGAIN}"

    def send(self, file: File, skip: int, then: str, sent: Callable[[int], None]) -> str:
        """`adb push`, then the script."""
        command = [_program(), "-s", self.serial, "push", str(file.source), self._partial(file)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
        self._check(done.returncode, done.stderr or done.stdout)
        sent(file.bytes)
        return self.sh(then)

    def log(self, run: str) -> bytes:
        """The run's log, then what the phone's system and apps logged since it began."""
        words = f"logcat -d -v threadtime -T '{self.began}' 2>&1 | tail -c {SMALL - 100}"
        return super().log(run) + b"--- logcat\n" + self.read(words, SMALL)

    def run_app(self, run: str, progress: Step) -> str:
        """Start the app with a run, and wait until its profile or error is there.

        Raises:
            DeviceError: If the phone goes away.
        """
        try:
            output = self.sh(f"am start -W -n {PACKAGE}/{ACTIVITY} --es run {run} 2>&1")
            if "Error" in output:
                return f"the app cannot be started: {one_line(output)}"
            return self._wait(run, progress)
        except KeyboardInterrupt:
            with suppress(DeviceError):
                self.sh(f"am force-stop {PACKAGE}")  # its answer is not needed
            raise

    def _wait(self, run: str, progress: Step) -> str:
        ended = False
        while True:
            out = self.sh(
                f"ls {run}; pidof {PACKAGE} >/dev/null || echo edgevlm-gone;"
                f" echo edgevlm-log; tail -n 1 {run}/{t.LOG} 2>/dev/null; true"
            )
            names, _, line = out.partition("edgevlm-log\n")
            if {t.PROFILE, t.ERROR} & {*names.split()}:
                return ""
            if ended:
                return (
                    "the app on the phone ended without an answer; --log FILE keeps what it logged"
                )
            ended = (
                "edgevlm-gone" in names
            )  # one more poll: the app may have ended right after its answer
            if line.strip():
                progress(f"{self.name}: {one_line(line)}")
            time.sleep(POLL_S)


def _check_runner(runner: Path | None) -> None:
    if runner is None:
        return
    try:
        with runner.open("rb") as file:
            begin = file.read(4)
    except OSError as cause:
        raise DeviceError(f"no runner at '{runner}': {cause.strerror}") from cause
    if not begin.startswith((b"\x7fELF", b"#!", b"PK\x03\x04")):
        raise DeviceError(
            f"'{runner}' is no runner: expected an .apk, or a program for the phone (ELF or #!)"
        )


def _is_app(serial: str, runner: Path | None, progress: Step) -> bool:
    """Whether the app runs the bundle, or else a program; installs `runner` if it is an app.

    Raises:
        DeviceError: If the phone has neither and `runner` is None, or the app cannot be installed.
    """
    if runner is not None:
        with runner.open("rb") as file:
            if file.read(2) != b"PK":
                return False
        progress(f"adb:{serial}: install {runner.name}")
        output = _adb("-s", serial, "install", "-r", str(runner), failing=True)
        if "Success" not in output:
            raise DeviceError(f"adb:{serial} cannot install '{runner}': {one_line(output)}")
    listing = (
        f"[ -f {PROGRAM_FOLDER}/program/runner ] && echo program; pm path {PACKAGE} 2>/dev/null"
    )
    runners = _adb("-s", serial, "shell", f"{listing}; true").split()
    app = any(word.startswith("package:") for word in runners)
    if runner is not None and not app:
        raise DeviceError(
            f"'{runner}' is not the app {PACKAGE}; give that app, or a program (ELF or #!)"
        )
    if not app and "program" not in runners:
        raise DeviceError(
            f"adb:{serial} has no runner; give --runner FILE, an app (.apk) or a program for it"
            " that follows docs/devices.md"
        )
    return runner is not None or "program" not in runners


def _chosen(address: str) -> str:
    """The serial number of the phone that `address` names, after a check that it is ready.

    Raises:
        DeviceError: If there is none, several, or it is not ready; says what to do on it.
    """
    phones, requested = _phones(), address or os.environ.get("ANDROID_SERIAL", "")
    names = ", ".join(f"adb:{serial}" for serial in phones)
    if not phones:
        raise DeviceError(NONE)
    if not requested and len(phones) > 1:
        raise DeviceError(f"several phones are connected; choose one with --device: {names}")
    serial = requested or next(iter(phones))
    if serial not in phones:
        raise DeviceError(f"no phone 'adb:{one_line(serial)}' is connected; connected: {names}")
    state, note = phones[serial]
    if state != READY:
        raise DeviceError(f"adb:{serial} is {state}: {STATES.get(state, note or 'restart it')}")
    return serial


def _phones() -> dict[str, tuple[str, str]]:
    """State and model of each phone, by its serial number."""
    phones = {}
    for line in _adb("devices", "-l").splitlines():
        if match := re.match(r"(\S+)\s+(no permissions|\S+)(.*)", line):
            model = re.search(r"model:(\S+)", match[3])
            if not line.startswith(("List of", "*")):
                phones[match[1]] = (match[2], model[1] if model else "")
    return phones


def _adb(*arguments: str, failing: bool = False) -> str:
    """What `adb` prints.

    Raises:
        DeviceError: If it fails, unless `failing` is set.
    """
    try:
        done = subprocess.run(
            [_program(), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=None if failing else 120, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as cause:
        raise DeviceError("adb does not answer; try 'adb kill-server', then again") from cause
    if done.returncode and not failing:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise DeviceError(f"adb failed: {one_line(lines[-1].removeprefix('adb: '))}")
    return done.stdout + (done.stderr if failing else "")


def _program() -> str:
    executable = program("adb")
    if executable is None:
        raise DeviceError(
            "'adb' is not installed; install Android's platform tools (package adb), then plug"
            " the phone in"
        )
    return executable
