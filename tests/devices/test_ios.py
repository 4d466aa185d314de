"""`--device ios`: the command lines, against a scripted `xcrun`; no device and no Mac was reached.

What is proved is what we ask of devicectl and what we do with its answers. The app is this package.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

import edgevlm
from edgevlm.devices import ios
from edgevlm.profiling.document import read_profile

ROOT = Path(edgevlm.__file__).parents[1]
QUICK = ("--threads", "1", "--runs", "1", "--tokens-generated", "2")
# Options as `xcrun devicectl help device copy to` and its kin name them.
XCRUN = """#!{python}
import json, os, pathlib, shutil, subprocess, sys
home = pathlib.Path({home!r})
words = sys.argv[1:]
with (home / "calls").open("a") as calls:
    calls.write(json.dumps(words) + chr(10))
state = json.loads((home / "state.json").read_text())

def option(name):
    return words[words.index(name) + 1]

def there(path):
    assert option("--domain-type") == "appDataContainer"
    assert option("--domain-identifier") == "org.edgevlm.app"
    return home / "container" / path

def fail(text):
    print("ERROR: " + text, file=sys.stderr)
    sys.exit(1)

result, verb = {{}}, " ".join(words[1:4])
if words[:3] == ["devicectl", "list", "devices"]:
    result = {{"devices": state["devices"]}}
elif words[0] != "devicectl" or option("--device") != "A-1":
    fail("unknown device")
elif verb == "device install app":
    state["apps"] = [{{"bundleIdentifier": "org.edgevlm.app"}}]
elif verb == "device info apps":
    result = {{"apps": state["apps"]}}
elif verb == "device copy to":
    state["copies"] -= 1
    if state["copies"] < 0:
        fail("The connection was interrupted.")
    target = there(option("--destination"))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(option("--source"), target)
elif verb == "device copy from":
    source = there(option("--source"))
    if not source.exists():
        fail("No such file")
    shutil.copyfile(source, option("--destination"))
elif verb == "device process launch":
    at = words.index("org.edgevlm.app")
    assert words[at + 1] == "--run" and "--terminate-existing" in words[:at]
    if state["app"]:
        run = home / "container" / "Documents" / "edgevlm" / words[at + 2]
        os.mkfifo(run / "in")  # an app has no stdin that could end
        subprocess.Popen(["sh", "-c", f"{{state['app']}} {{run}} <> {{run}}/in"],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result = {{"process": {{"processIdentifier": 7}}}}
elif verb == "device info processes":
    result = {{"runningProcesses": [{{"processIdentifier": 7}}] if state["app"] else []}}
else:
    fail("unknown command " + verb)
(home / "state.json").write_text(json.dumps(state))
pathlib.Path(option("--json-output")).write_text(json.dumps({{"result": result}}))
"""
DEVICE = {
    "identifier": "A-1",
    "connectionProperties": {"pairingState": "paired", "tunnelState": "connected"},
    "deviceProperties": {"name": "A phone", "developerModeStatus": "enabled"},
    "hardwareProperties": {"platform": "iOS", "marketingName": "iPhone 15 Pro"},
}


@pytest.fixture
def mac(tmp_path, monkeypatch):
    """`mac(key=value)` changes what the scripted xcrun knows; `mac.home` is its folder."""
    home = tmp_path / "mac"
    home.mkdir()
    program = home / "bin" / "xcrun"
    program.parent.mkdir()
    program.write_text(XCRUN.format(python=sys.executable, home=str(home)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(ios, "POLL_S", 0.1)
    app = f"env PYTHONPATH={ROOT} {sys.executable} -P -m edgevlm.devices.shared.runner"
    known = {"devices": [DEVICE], "apps": [{"name": "app"}], "copies": 1000, "app": app}

    def change(**values):
        known.update(values)
        (home / "state.json").write_text(json.dumps(known))
        (home / "calls").write_text("")

    change()
    change.home = home
    change.container = home / "container" / "Documents" / "edgevlm"
    return change


def calls(mac, verb):
    lines = (mac.home / "calls").read_text().splitlines()
    return [words for words in map(json.loads, lines) if " ".join(words[2:4]) == verb]


@pytest.fixture
def measure(run, exported):
    def call(*more, device="ios"):
        return run("profile", exported.bundle.path, *QUICK, "--device", device, *more)

    return call


def refusal(done):
    assert (done.exit_code, done.stdout) == (1, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("edgevlm: ")
    return line.removeprefix("edgevlm: ")


def test_the_whole_way(measure, mac, tmp_path, tree, exported):
    out, log = tmp_path / "p.json", tmp_path / "device.log"
    done = measure("-o", out, "--log", log)
    assert done.exit_code == 0, done.stderr
    found = read_profile(out)
    assert (found.device, found.text.question.image) == ("ios:A-1", "scene.png")
    assert "] answer 1 of 1\n" in log.read_text("utf-8")
    here = tree(exported.bundle.path)
    assert tree(mac.container / "bundles" / "tiny.edgevlm") == {
        name: here[name] for name in here if not name.startswith("measured/")
    }
    mac()
    again = measure(device="ios:A-1")
    assert again.exit_code == 0, again.stderr
    sent = [words[words.index("--destination") + 1] for words in calls(mac, "copy to")]
    assert [Path(path).name for path in sent] == ["picture", "request.json"]


def test_only_what_differs_is_copied(measure, mac, tree, monkeypatch):
    monkeypatch.setattr(ios, "LIST_BYTES", 1)
    mac(copies=10)
    assert refusal(measure()) == "devicectl failed: ERROR: The connection was interrupted."
    bundle = mac.container / "bundles" / "tiny.edgevlm"
    assert (bundle / "manifest.json").read_bytes() == b""  # no half bundle looks whole
    mac(copies=1000)
    done = measure()
    assert done.exit_code == 0, done.stderr
    sent = {words[words.index("--destination") + 1] for words in calls(mac, "copy to")}
    files = {f"Documents/edgevlm/bundles/tiny.edgevlm/{name}" for name in tree(bundle)}
    assert len(files - sent) == 4  # the mark, and each file with its note: four whole ones of ten


def test_the_app(measure, mac, tmp_path):
    mac(apps=[])
    assert refusal(measure()).startswith("ios:A-1 lacks the app org.edgevlm.app; build it")
    assert refusal(measure("--runner", "a.apk")).startswith(
        "'a.apk' is no runner for iOS: expected"
    )
    assert refusal(measure("--runner", "a.ipa")) == "no runner at 'a.ipa'"
    package = tmp_path / "a.ipa"
    package.write_bytes(b"PK")
    done = measure("--runner", package)
    assert done.exit_code == 0, done.stderr
    (install,) = calls(mac, "install app")
    assert install[-1] == str(package)


def test_an_app_that_fails(measure, mac):
    assert refusal(measure("--memory", "1MB")).startswith("ios:A-1: a budget of 1 MB is too small")
    mac(app="")
    assert refusal(measure()) == "ios:A-1: the app on the device ended without an answer"


def changed(part, **values):
    return DEVICE | {part: DEVICE[part] | values}


@pytest.mark.parametrize(
    ("device", "what"),
    [
        (changed("connectionProperties", pairingState="unpaired"), "unlock it and trust this Mac"),
        (changed("deviceProperties", developerModeStatus="disabled"), "turn on Developer Mode"),
        (changed("connectionProperties", tunnelState="unavailable"), "connect it by cable, or"),
    ],
)
def test_devices_that_are_not_ready(measure, mac, device, what):
    mac(devices=[device])
    assert refusal(measure()).startswith(f"ios:A-1 is not ready: {what}")
    (seen,) = ios.reachable()
    assert (seen.device, seen.state) == ("ios:A-1", "not ready")
    assert seen.note.startswith(what)


def test_the_device_that_is_meant(measure, mac):
    watch = changed("hardwareProperties", platform="watchOS") | {"identifier": "W-1"}
    mac(devices=[watch])
    assert refusal(measure()).startswith("no iOS device is known; connect one and trust this Mac")
    mac(devices=[DEVICE, DEVICE | {"identifier": "B-2"}])
    assert refusal(measure()) == (
        "several iOS devices are known; choose one with --device: ios:A-1, ios:B-2"
    )
    assert refusal(measure(device="ios:C")) == (
        "no device 'ios:C' is known; known: ios:A-1, ios:B-2"
    )
    assert [seen.note for seen in ios.reachable()] == ["A phone, iPhone 15 Pro"] * 2


@pytest.mark.skipif(shutil.which("xcrun") is not None, reason="this is a Mac")
def test_without_a_mac(measure):
    expected = "device 'ios' needs a Mac with Xcode 15 or newer: 'xcrun' is not installed"
    assert refusal(measure()) == expected
    assert [seen.note for seen in ios.reachable()] == [expected]
