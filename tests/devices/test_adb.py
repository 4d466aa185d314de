"""`--device adb…`: the real adb against a scripted phone on loopback.

The phone speaks adb's protocol and runs scripts in a real `sh`; its runner is this package, so that
profiles are real. What only a phone has (its app, its log) is a script of a line or two.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

import edgevlm
from edgevlm.profiling.document import read_profile

ROOT = Path(edgevlm.__file__).parents[1]
QUICK = ("--threads", "1", "--runs", "1", "--tokens-generated", "2")
AGAIN = "run the same command again: what was copied stays"


@pytest.fixture
def measure(run, exported):
    """Run `edgevlm profile --device adb`."""

    def call(*more, device="adb", bundle=exported.bundle.path):
        return run("profile", bundle, *QUICK, "--device", device, *more)

    return call


@pytest.fixture
def runner(tmp_path):
    """A program that keeps the contract: this package's own runner."""
    path = tmp_path / "runner"
    path.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={ROOT} XDG_CACHE_HOME={tmp_path}/runner-cache\n"
        f'exec {sys.executable} -P -m edgevlm.devices.shared.runner "$1"\n'
    )
    return path


def test_the_whole_way(measure, phones, runner, tree, exported, tmp_path):
    phone = phones()
    out, log = tmp_path / "p.json", tmp_path / "device.log"
    done = measure("--runner", runner, "-o", out, "--log", log)
    assert done.exit_code == 0, done.stderr
    found = read_profile(out)
    assert (found.device, found.text.question.image) == (f"adb:{phone.serial}", "scene.png")
    assert f"adb:{phone.serial}: answer 1 of 1\n" in done.stderr
    own, _, system = log.read_text("utf-8").partition("--- logcat\n")
    assert "] answer 1 of 1\n" in own
    assert "I edgevlm: -d -v threadtime -T " in system

    folder = phone.storage / "edgevlm"
    here = tree(exported.bundle.path)
    assert tree(folder / "bundles" / "tiny.edgevlm") == {
        name: here[name] for name in here if not name.startswith("measured/")
    }
    assert os.listdir(folder / "runs") == os.listdir(folder / "partial") == []
    assert os.listdir(phone.storage) == ["edgevlm"]

    # Runner and bundle are there: a picture and a request are all that goes again.
    before = phone.pushed
    again = measure(device=f"adb:{phone.serial}")
    assert again.exit_code == 0, again.stderr
    assert "copied" not in again.stderr
    assert 0 < phone.pushed - before < 200_000


def test_a_phone_that_is_unplugged_while_it_copies(measure, refused, phones, runner, exported):
    phone = phones(push_limit=600_000)
    assert refused("--runner", runner) == (
        f"the link to adb:{phone.serial} was cut; plug the phone in again, and {AGAIN}"
    )
    folder = phone.storage / "edgevlm"
    there = folder / "bundles" / "tiny.edgevlm"
    assert list(there.rglob("*.weights"))
    assert not (there / "manifest.json").exists()

    # Plugged in again, it has another number here; its storage is what it was.
    again = phones()
    shutil.rmtree(again.storage)
    shutil.copytree(phone.storage, again.storage)
    done = measure("--runner", runner, device=f"adb:{again.serial}")
    assert done.exit_code == 0, done.stderr
    total = sum(f.bytes for f in exported.bundle.plan.files)
    assert 0.2e6 < again.pushed < total


@pytest.mark.parametrize("how", ["unplugged", "Ctrl-C"])
def test_an_end_while_it_measures(start, phones, runner, tmp_path, exported, how):
    phone, out = phones(), tmp_path / "p.json"
    process = start(
        "profile", exported.bundle.path, *QUICK, "--minutes", "5", "--device", "adb",
        "--runner", runner, "-o", out,
    )  # fmt: skip
    while "without a pause" not in (line := process.stderr.readline()):
        assert line
    if how == "Ctrl-C":
        process.send_signal(signal.SIGINT)
        expected = "edgevlm: stopped; no output is incomplete"
    else:
        phone.unplug()
        expected = f"edgevlm: the link to adb:{phone.serial} was cut; plug the phone in again, and"
    rest = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 1
    assert rest[-1].startswith(expected)
    assert not any(line.startswith(("Traceback", " ")) for line in rest)
    assert not out.exists()
    end = time.monotonic() + 10
    while _runs(phone):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(phone):
    """Whether a runner is still at work in the phone's folder."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            home, words = os.readlink(entry / "cwd"), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if home.startswith(str(phone.folder)) and b"edgevlm.devices.shared.runner" in words:
            return True
    return False


@pytest.fixture
def app(tmp_path):
    """What `am start` does on a phone with the app: it runs the run's folder, apart from adb."""
    package = tmp_path / "app.apk"
    package.write_bytes(b"PK\x03\x04 an app")

    def install(phone, runs):
        phone.script("am", f"[ -f {phone.folder}/app ] || exit 1\n{runs}")
        phone.script("pidof", f"[ -f {phone.folder}/alive ]")
        return package

    return install


def test_an_app(measure, phones, app, runner, tmp_path):
    phone, out = phones(), tmp_path / "p.json"
    runs = (
        f"for last; do :; done; touch {phone.folder}/alive; mkfifo $last/in\n"
        f"(PYTHONPATH={ROOT} XDG_CACHE_HOME={tmp_path}/cache {sys.executable}"
        f" -P -m edgevlm.devices.shared.runner $last <> $last/in; rm {phone.folder}/alive)"
        " >/dev/null 2>&1 &"
    )
    done = measure("--runner", app(phone, runs), "-o", out)
    assert done.exit_code == 0, done.stderr
    assert f"adb:{phone.serial}: install app.apk\n" in done.stderr
    assert read_profile(out).device == f"adb:{phone.serial}"
    folder = phone.folder / "sdcard" / "Android" / "data" / "org.edgevlm.app" / "files" / "edgevlm"
    assert (folder / "bundles" / "tiny.edgevlm" / "manifest.json").exists()
    assert not (phone.storage / "edgevlm").exists()
    # It stays: the second time nothing has to be given.
    again = measure()
    assert again.exit_code == 0, again.stderr
    assert "install" not in again.stderr
    assert "copied" not in again.stderr


def test_an_app_is_stopped_when_the_command_is(start, phones, app, exported, tmp_path):
    phone, said = phones(), tmp_path / "am"
    package = app(phone, f'echo "$*" >> {said}; touch {phone.folder}/alive')
    process = start("profile", exported.bundle.path, *QUICK, "--device", "adb", "--runner", package)
    end = time.monotonic() + 60
    while not said.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert err.splitlines()[-1].startswith("edgevlm: stopped; no output is incomplete")
    first, *rest = said.read_text().splitlines()
    assert first.startswith("start -W -n org.edgevlm.app/.ProfileActivity --es run runs/")
    assert rest == ["force-stop org.edgevlm.app"]


def test_an_app_that_fails(refused, phones, app):
    phone = phones()
    package = app(phone, "echo 'Error type 3'; echo 'Error: Activity class does not exist.'")
    name = f"adb:{phone.serial}"
    assert refused("--runner", package).startswith(f"{name}: the app cannot be started: Error type")
    app(phone, "echo Starting")
    assert refused() == (
        f"{name}: the app on the phone ended without an answer; --log FILE keeps what it logged"
    )
    phone.installs = b"Failure [INSTALL_FAILED_UPDATE_INCOMPATIBLE: signatures do not match]\n"
    line = refused("--runner", package)
    assert line.startswith(f"{name} cannot install '{package}': ")
    assert "INSTALL_FAILED_UPDATE_INCOMPATIBLE" in line


def test_a_runner_that_fails(refused, phones, tmp_path, runner):
    phone = phones()
    name = f"adb:{phone.serial}"
    assert refused().startswith(
        f"{name} has no runner; give --runner FILE, an app (.apk) or a program for it"
    )
    assert refused("--runner", tmp_path / "none").startswith(
        f"no runner at '{tmp_path / 'none'}': "
    )
    other = tmp_path / "other"
    other.write_text("hello")
    assert refused("--runner", other) == (
        f"'{other}' is no runner: expected an .apk, or a program for the phone (ELF or #!)"
    )
    other.write_text("#!/no/such/interpreter\n")
    assert refused("--runner", other).startswith(
        f"{name}: the runner cannot be executed on the phone; is it built for it?"
    )
    other.write_text("#!/bin/sh\necho step; echo broken >&2; exit 3\n")
    assert refused("--runner", other) == (
        f"{name}: the runner on the phone ended with exit code 3; broken"
    )
    assert refused("--runner", runner, "--memory", "1MB").startswith(f"{name}: a budget of 1 MB")


def test_no_phone(refused, phones, monkeypatch, tmp_path):
    phone = phones()
    subprocess.run(["adb", "disconnect", phone.serial], check=True, capture_output=True)
    assert refused() == (
        "no phone is connected; plug one in with 'USB debugging' on in its Developer options"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused() == (
        "'adb' is not installed; install Android's platform tools (package adb), then plug"
        " the phone in"
    )


def test_several_phones(refused, phones):
    first, second = phones(), phones()
    line = refused()
    assert line.startswith("several phones are connected; choose one with --device: adb:127")
    assert f"adb:{first.serial}" in line
    assert f"adb:{second.serial}" in line
    assert refused(device="adb:other").startswith("no phone 'adb:other' is connected; connected: ")
    assert "has no runner" in refused(device=f"adb:{second.serial}")


def test_phones_that_are_not_ready(refused, run, phones):
    locked = phones(state="unauthorized")
    words = "unlock it and allow USB debugging for this computer on its screen"
    assert refused() == f"adb:{locked.serial} is unauthorized: {words}"
    asleep = phones(state="offline")
    again = "unplug it and plug it in again, or turn its USB debugging off and on"
    assert refused(device=f"adb:{asleep.serial}") == f"adb:{asleep.serial} is offline: {again}"
    ready = phones()
    seen = {r["device"]: r for r in json.loads(run("devices", "--json").stdout)["reachable"]}
    assert seen[f"adb:{locked.serial}"] == {
        "device": f"adb:{locked.serial}", "state": "unauthorized", "note": words
    }  # fmt: skip
    assert seen[f"adb:{asleep.serial}"]["note"] == again
    assert seen[f"adb:{ready.serial}"]["state"] == "ready"
    old = phones(features="cmd")
    assert refused(device=f"adb:{old.serial}") == (
        f"adb:{old.serial} is too old: Android 7 or newer is needed"
    )
