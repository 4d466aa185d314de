"""`edgevlm profile --device ssh:…` against a real sshd on loopback, whose programs a test chooses.

What runs "on the device" is this interpreter, in a home folder of the test's own.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile

import pytest

QUICK = ("--threads", "1", "--runs", "1", "--tokens-generated", "2")
HOST = "ssh:127.0.0.1"
# All that a device needs besides Python.
TOOLS = ("cat", "df", "env", "find", "head", "mkdir", "mv", "rm", "sh", "sha256sum", "tail", "wc")


@pytest.fixture
def measure(run, exported):
    """Run `edgevlm profile --device ssh:127.0.0.1`."""

    def call(*more, device=HOST, bundle=exported.bundle.path):
        return run("profile", bundle, *QUICK, "--device", device, *more)

    return call


@pytest.fixture(scope="session")
def package(once):
    """The package as a visit leaves it on a device; Python compiles it once for all tests."""

    def write(folder):
        from edgevlm.devices import ssh

        data = ssh.sources()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(folder / hashlib.sha256(data).hexdigest()[:16])

    return once("ssh-package", write)


@pytest.fixture
def visited(sshd, package):
    """`visited()`: a device that has the package; others get it with the first visit."""

    def make():
        sshd.remote.mkdir(parents=True)
        (sshd.remote / "package").symlink_to(package)

    return make


@pytest.fixture
def tools(tmp_path):
    """A folder with the programs that a device has, and no Python."""

    def make(names=TOOLS):
        folder = tmp_path / "tools"
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(shutil.which(name))
        return folder

    return make


@pytest.fixture
def script():
    """Write an executable shell script."""

    def write(path, text):
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    return write
