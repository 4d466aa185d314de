"""What fails on an ssh device, or here before any connection, is one line."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

pytest.importorskip("onnxruntime")


HOST = "ssh:127.0.0.1"


def test_no_permission_there(refused, sshd):
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and setpriv is not installed")
        who = "setpriv --reuid 65534 --regid 65534 --clear-groups"
        sshd.start(f'ForceCommand {who} sh -c "$SSH_ORIGINAL_COMMAND"')
        for folder in (sshd.device, *sshd.device.parents):
            folder.chmod(0o755)
            if folder.name.startswith("pytest-of"):
                break
    else:
        sshd.start()
        sshd.device.chmod(0o500)
    assert refused().startswith(f"{HOST}: its folder for edgevlm cannot be written: mkdir: ")


def test_what_fails_there_is_one_line(refused, sshd, visited, tmp_path):
    sshd.start()
    visited()
    log = tmp_path / "device.log"
    assert refused("--memory", "1MB", "--log", log).startswith(
        f"{HOST}: a budget of 1 MB is too small"
    )
    assert "open the bundle" in log.read_text("utf-8")
    assert refused("--engine", "onnx").startswith("unknown engine 'onnx'; did you mean")
    assert os.listdir(sshd.remote / "runs") == []


def test_what_is_wrong_here_is_refused_before_any_connection(refused, sshd, tmp_path):
    assert refused("--image", "no.jpg").startswith("no image at 'no.jpg'")
    assert refused(bundle=tmp_path).endswith("is not a bundle: it has no manifest.json; export one")
    assert refused("--runner", "a.apk").startswith("--runner is for phones: device 'ssh' takes")
    assert refused("--log", tmp_path).endswith(
        "cannot be written: it is a folder; give a file name"
    )


def test_a_hostile_device(refused, sshd, visited, tools, tmp_path, script):
    """Its Python is this one, but for the run, which answers with a file of its own.

    tests/devices/test_transport.py has what a profile may be wrong in.
    """
    folder, sent = tools(), sshd.device / "sent"
    script(
        folder / "python3",
        f'for last; do :; done\ncase "$last" in\n'
        f'runs/*) cp {sent}/* "$last";;\n*) exec {sys.executable} "$@";;\nesac',
    )
    (folder / "cp").symlink_to(shutil.which("cp"))
    sshd.start(path=folder)
    visited()
    for name, text, size, expected in [
        ("profile.json", "{", None, f"{HOST} sent no profile: 'profile.json' is not valid JSON"),
        ("profile.json", " ", 64_000_001, f"{HOST} sent more than 64000000 bytes"),
        ("error.txt", "no\n\x1b[2Jroom " + "x" * 1000, None, f"{HOST}: no [2Jroom xxx"),
        ("other", "", None, f"{HOST}: the remote run ended with exit code 0"),
    ]:
        shutil.rmtree(sent, ignore_errors=True)
        sent.mkdir()
        (sent / name).write_text(text, "utf-8")
        if size:
            os.truncate(sent / name, size)
        line = refused("-o", tmp_path / "p.json")
        assert line.startswith(expected)
        assert len(line) < 400
    assert not (tmp_path / "p.json").exists()
