"""`edgevlm devices`, and `edgevlm plan --for` one of them."""

from __future__ import annotations

import json

import pytest

from edgevlm.devices.shared import named

FOR = {
    "device", "target", "limit_bytes", "limit_from", "reserve_bytes", "budget_bytes", "asked",
    "best", "block_size_bytes", "bandwidth_bytes_per_s", "calculated", "not_measured",
}  # fmt: skip


def document(done):
    """The JSON document on the last line of stdout."""
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """No adb, no ssh, no Mac: nothing of this machine's is asked."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def test_devices_as_text(run, alone):
    here, listed, note = run("devices").stdout.strip().split("\n\n")
    lines = here.splitlines()
    assert lines[0].split() == ["--device", "state", "note"]
    assert lines[1].split()[:2] == ["adb", "not"]
    assert "'adb' is not installed; install Android's platform tools (package adb)" in lines[1]
    assert lines[2].endswith("'xcrun' is not installed")
    assert lines[3].split()[:2] == ["local", "ready"]
    assert lines[4].endswith("install OpenSSH's client (openssh-client)")
    lines = listed.splitlines()
    assert lines[0].split() == [
        "device",
        "os",
        "memory",
        "app",
        "limit",
        "bandwidth",
        "NPU",
        "target",
    ]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert sorted(rows) == named.names()
    assert "~3.5 GB" in rows["iphone-15-pro"]  # seen by a user
    assert " 8.0 GB" in rows["iphone-15-pro"]
    assert "35 TOPS" in rows["iphone-15-pro"]
    assert rows["pixel-9"].split("GB")[1].split()[:2] == ["-", "-"]  # neither limit nor bandwidth
    assert "~ observed by users, or derived" in note


def test_devices_as_json_have_their_sources(run, alone):
    done = run("devices", "--json")
    found = document(done)
    assert set(found) == {"reachable", "named"}
    assert [seen["device"] for seen in found["reachable"]] == ["adb", "ios", "local", "ssh"]
    assert all(set(seen) == {"device", "state", "note"} for seen in found["reachable"])
    rows = {row["name"]: row for row in found["named"]}
    assert list(rows) == named.names()
    phone = rows["iphone-15-pro"]
    assert phone["app_limit_bytes"] == 3376 * 2**20
    assert set(phone["sources"]["app_limit_bytes"]) == {"kind", "url", "says"}
    assert rows["pixel-9"]["bandwidth_bytes_per_s"] is None
    assert "bandwidth_bytes_per_s" in rows["pixel-9"]["missing"]
    assert done.stdout.count("\n") == 1


def test_hosts_that_the_user_has_named(run, alone, tmp_path, monkeypatch):
    from edgevlm.devices import ssh

    (alone / "ssh").touch(0o755)
    config = tmp_path / "config"
    config.write_text("Host orin\n  User me\n")
    monkeypatch.setattr(ssh, "CONFIG", config)
    reachable = document(run("devices", "--json"))["reachable"]
    assert [(seen["device"], seen["state"]) for seen in reachable[3:]] == [
        ("ssh:USER@HOST[:PORT]", "ready"), ("ssh:orin", "not contacted")
    ]  # fmt: skip


def test_devices_needs_no_torch(command, alone):
    done = command(
        "devices", before="sys.modules.update(dict.fromkeys(['torch', 'numpy.testing']))"
    )
    assert done.code == 0, done.err
    assert "raspberry-pi-5" in done.out


def test_plan_for_a_device(run, tiny_model):
    pytest.importorskip("onnx_ir")
    plan = document(run("plan", tiny_model, "--tokens", "16", "--for", "raspberry-pi-5", "--json"))
    found = plan["for"]
    assert set(found) == FOR
    assert (found["device"], found["target"]) == ("raspberry-pi-5", "onnx")
    assert (found["limit_bytes"], found["budget_bytes"]) == (4 * 10**9, 3_744 * 10**6)
    asked = found["asked"]
    assert asked["weights_bytes"] == plan["weights_bytes"]
    assert asked["needed_bytes"] == plan["weights_bytes"] + plan["kv_bytes"]
    stages = ("decoder", "head")
    read = sum(b["weights_bytes"] for b in plan["blocks"] if b["stage"] in stages)
    assert asked["token_floor_ms"] == pytest.approx(read / 17_068_000_000 * 1e3)
    assert (asked["fits"], found["best"]) == (True, asked)
    assert found["block_size_bytes"] == 512 * 10**6
    assert found["calculated"] is True


def test_plan_without_a_device_says_nothing_of_one(run, tiny_model):
    pytest.importorskip("onnx_ir")
    assert "for" not in document(run("plan", tiny_model, "--json"))


def test_plan_takes_the_devices_target(run, tiny_model):
    pytest.importorskip("coremltools")
    done = run("plan", tiny_model, "--for", "iphone-15-pro")
    first, *_ = done.stdout.splitlines()
    assert " for coreml, " in first
    end = done.stdout[done.stdout.index("\nfor iphone-15-pro") :].strip().splitlines()
    assert end[0] == (
        "for iphone-15-pro: one app may use 3,540.0 MB (observation); without 256.0 MB for the app"
        " around the engine: run --memory 3283MB"
    )
    assert end[1].startswith("none: weights ")
    assert end[1].endswith("MB: fits")
    total = end[1].partition(" = ")[2].partition(":")[0]
    assert end[2] == f"most exact scheme of coreml that fits: --quantize none, {total}"
    assert end[3] == "--block-size 512MB: two blocks and the KV cache fit"
    assert "ms or more at 51.2 GB/s" in end[4]
    assert "calculated from published figures, not measured on the device" in end[5]


def test_a_target_that_is_given_is_kept(run, tiny_model):
    pytest.importorskip("onnx_ir")
    arguments = ("--for", "pixel-9", "--target", "onnx", "--quantize", "fp16")
    found = document(run("plan", tiny_model, *arguments, "--json"))["for"]
    assert found["target"] == "onnx"
    # Sessions unpack fp16: in memory it is float32, so float32 is as good.
    assert found["best"]["quantize"] == "none"
    assert found["asked"] == found["best"] | {"quantize": "fp16"}
    assert found["asked"]["token_floor_ms"] is None
    assert "token_floor_ms" in found["not_measured"]
    text = run("plan", tiny_model, *arguments).stdout
    assert "the limit of one app is not known, half of the memory is 6,000.0 MB;" in text
    assert "of decoder and head; no bandwidth: " in text


def test_a_plan_that_does_not_fit(run, tiny_model, tmp_path, monkeypatch):
    pytest.importorskip("onnx_ir")
    text = (named.FOLDER / "raspberry-pi-5.toml").read_text()
    # Half of 513 MB, less the reserve: a budget of 500 kB.
    small = text.replace("raspberry-pi-5", "watch").replace("8_000_000_000", "513_000_000")
    (tmp_path / "watch.toml").write_text(small)
    monkeypatch.setattr(named, "FOLDER", tmp_path)
    done = run("plan", tiny_model, "--for", "watch")
    assert "run --memory 0MB" in done.stdout
    assert "MB: does not fit" in done.stdout
    assert "no scheme of onnx fits in memory, the smallest is --quantize w4g32" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--for", "iphone-15"), "unknown device 'iphone-15'; did you mean 'iphone-15-pro'?"),
        (("--for", "pixel-9", "--sensitivity"), "--for and --sensitivity exclude each other"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line(run, arguments, message):
    done = run("plan", *arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"edgevlm: {message}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
