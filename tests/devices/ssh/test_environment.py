"""The Python and the package that run on an ssh device."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from edgevlm.devices import ssh

HOST = "ssh:127.0.0.1"
# All that a device needs besides Python, see conftest.py.
TOOLS = ("cat", "df", "env", "find", "head", "mkdir", "mv", "rm", "sh", "sha256sum", "tail", "wc")


def test_no_python_there(refused, sshd, tools):
    sshd.start(path=tools())
    assert refused() == f"{HOST} has no Python; install Python 3.11 or newer there"


def test_an_old_python_there(refused, sshd, tools, script):
    names = (f"python3.{minor}" for minor in range(6, 11))
    found = [path for path in map(shutil.which, names) if path]
    found = [p for p in found if not subprocess.run([p, "-c", ""], capture_output=True).returncode]
    if not found:
        pytest.skip("this system has no Python older than 3.11")
    folder = tools()
    script(folder / "python3", f'exec {found[0]} "$@"')
    sshd.start(path=folder)
    line = refused()
    assert line.startswith(f"{HOST} has only a Python older than 3.11 (/")
    assert line.endswith("); install Python 3.11 or newer there")


def test_no_network_there(refused, sshd, tools, script):
    folder, base = tools(), Path(sys.base_prefix) / "bin" / "python3"
    if subprocess.run([base, "-c", "import onnxruntime"], capture_output=True).returncode == 0:
        pytest.skip("the system's own Python has all that a bundle needs")
    (folder / "python3").symlink_to(base)
    sshd.start(path=folder, environment="PIP_NO_INDEX=1")
    line = refused()
    assert line.startswith(f"{HOST} has no Python with numpy>=1.26, pillow>=11, ")
    assert "onnxruntime>=1.32, protobuf>=4.22, and they could not be installed: " in line
    environment = sshd.remote / "venv-onnx"
    assert line.endswith(f"install them there, or link your environment to {environment}")
    assert not environment.exists()
    assert not (sshd.remote / ".venv-onnx").exists()

    # What the line proposes.
    (environment / "bin").mkdir(parents=True)
    script(environment / "bin" / "python", f'exec {sys.executable} "$@"')
    environment.rename(sshd.device / "mine")
    environment.symlink_to(sshd.device / "mine")
    assert refused("--memory", "1MB").startswith(f"{HOST}: a budget of 1 MB is too small")


def test_a_device_with_the_fewest_tools(measure, sshd, tools, script):
    # As on macOS: shasum, no flock. Its login shell greets whoever comes.
    names = [name for name in TOOLS if name != "sha256sum"]
    if shutil.which("shasum") is None:
        pytest.skip("this system has no shasum")
    folder = tools([*names, "shasum", "perl"])
    script(folder / "python3", f'exec {sys.executable} "$@"')
    greet = "ForceCommand echo Welcome; printf 'no newline'; echo; eval \"$SSH_ORIGINAL_COMMAND\""
    sshd.start(greet, path=folder)
    done = measure()
    assert done.exit_code == 0, done.stderr
    again = measure()
    assert again.exit_code == 0, again.stderr
    assert "copied" not in again.stderr
    assert "send edgevlm" not in again.stderr


@pytest.mark.parametrize("form", ["checkout", "installed"])
def test_an_environment_is_made_for_what_a_bundle_needs(form, monkeypatch, tmp_path):
    if form == "installed":
        lines = [
            "numpy>=1.26",
            'onnxruntime>=1.22; extra == "onnxruntime"',
            'edgevlm[onnxruntime]; extra == "onnx"',
            'torch<2.14,>=2.13; extra == "onnx"',
        ]
        monkeypatch.setattr("edgevlm.__file__", str(tmp_path / "edgevlm" / "__init__.py"))
        monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    needs = ssh.requirements("onnxruntime")
    assert any(need.startswith("numpy") for need in needs)
    assert any(need.startswith("onnxruntime") for need in needs)
    assert not any(need.startswith(("torch", "edgevlm", "onnxscript")) for need in needs)


def test_the_sources_that_are_sent_are_the_same_bytes_every_time(tmp_path):
    packed = ssh.sources()
    assert packed == ssh.sources()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names = archive.namelist()
    assert {
        "edgevlm/api.py",
        "edgevlm/runtimes/loops/text.py",
        "edgevlm/devices/shared/runner.py",
    } <= {*names}
    assert not [name for name in names if name.endswith((".safetensors", ".png", ".pyc"))]
    assert len(packed) < 2_000_000


@pytest.mark.slow
@pytest.mark.network
def test_an_environment_is_made(measure, sshd, tools):
    folder = tools()
    (folder / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    sshd.start(path=folder)
    done = measure()
    assert done.exit_code == 0, done.stderr
    assert (sshd.remote / "venv-onnx" / "bin" / "python").exists()
    packages = sshd.remote.glob("venv-onnx/lib/*/site-packages/torch")
    assert list(packages) == []
    assert "make " not in measure().stderr
