"""A full disk on an ssh device."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

pytest.importorskip("onnxruntime")


HOST = "ssh:127.0.0.1"
AGAIN = "run the same command again: what was copied stays"


@pytest.fixture
def disk(sshd):
    """A small file system as the device's cache; `disk("nr_inodes=9")` changes it."""
    folder = sshd.device / "cache"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        done = subprocess.run(command, capture_output=True)
        if done.returncode:
            pytest.skip("only root can make a small file system")

    mount("size=8m")
    yield mount
    subprocess.run(["umount", "-l", folder], check=True)


def test_too_little_room_for_the_bundle(measure, refused, sshd, visited, disk):
    sshd.start()
    visited()
    assert measure().exit_code == 0
    shutil.rmtree(sshd.remote / "bundles")
    state = os.statvfs(sshd.remote)
    (sshd.device / "cache" / "other").write_bytes(bytes(state.f_bavail * state.f_frsize - 500_000))
    line = refused()
    assert line.startswith(f"{HOST} has 0.5 MB free for '{sshd.remote}', bundles/tiny.edgevlm")
    assert line.endswith(f"needs 1.2 MB more; free some space, and {AGAIN}")
    assert list((sshd.remote / "partial").iterdir()) == []


def test_a_disk_that_gets_full(measure, refused, sshd, visited, disk):
    sshd.start()
    visited()
    assert measure().exit_code == 0
    shutil.rmtree(sshd.remote / "bundles")
    state = os.statvfs(sshd.remote)
    # `df` sees bytes; here it is the number of files that runs out on the way.
    disk(f"remount,nr_inodes={state.f_files - state.f_ffree + 20}")
    line = refused()
    assert line.startswith(f"{HOST} has no space left in '{sshd.remote}' (")
    assert line.endswith(f"No space left on device); free some, and {AGAIN}")
    assert not (sshd.remote / "bundles" / "tiny.edgevlm" / "manifest.json").exists()
    disk("remount,nr_inodes=10000")
    done = measure()
    assert done.exit_code == 0, done.stderr
    assert " copied " in done.stderr
    assert ", 0.0 MB were there" not in done.stderr
