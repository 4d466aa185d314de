"""`--device ssh:…` against a real sshd on loopback: the whole way, and every fault on it.

What runs "on the device" is this interpreter, in a home folder of the test's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from edgevlm.devices import ssh
from edgevlm.errors import DeviceError
from edgevlm.profile import read_profile

QUICK = ("--threads", "1", "--runs", "1", "--tokens-generated", "2")
HOST = "ssh:127.0.0.1"
AGAIN = "run the same command again: what was copied stays"
# All that a device needs besides Python.
TOOLS = ("cat", "df", "env", "find", "head", "mkdir", "mv", "rm", "sh", "sha256sum", "tail", "wc")


@pytest.fixture
def measure(run, exported):
    """Run `edgevlm profile --device ssh:127.0.0.1`."""

    def call(*more, device=HOST, bundle=exported.bundle.path):
        return run("profile", bundle, *QUICK, "--device", device, *more)

    return call


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


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def copied(done):
    """MB that were copied, and that were there, as the command says."""
    (line,) = [line for line in done.stderr.splitlines() if " copied " in line]
    words = line.partition(" copied ")[2].split()
    return float(words[0]), float(words[2])


def files(folder):
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def runners(device):
    """Processes that still run there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
            home = os.readlink(entry.parent / "cwd")
        except OSError:
            continue
        if b"edgevlm.devices._runner" in words and home.startswith(str(device)):
            found.append(int(entry.parent.name))
    return found


def wait_for(what, seconds=10):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_whole_way(measure, sshd, tmp_path, tree, exported, link):
    sshd.start()
    out, log = tmp_path / "p.json", tmp_path / "device.log"
    done = measure("-o", out, "--log", log, "--report", tmp_path / "r.html")
    assert done.exit_code == 0, done.stderr
    found = read_profile(out)
    assert (found.device, found.question.image, found.bundle) == (HOST, "scene.png", "tiny.edgevlm")
    assert f"device {HOST}" in (tmp_path / "r.html").read_text("utf-8")
    assert (found.runs, found.threads, found.recipe) == (1, 1, exported.bundle.plan.recipe)
    assert "] answer 1 of 1\n" in log.read_text("utf-8")
    assert f"{HOST}: answer 1 of 1\n" in done.stderr

    there = tree(sshd.remote / "bundles" / "tiny.edgevlm")
    here = tree(exported.bundle.path)
    assert there == {name: here[name] for name in here if not name.startswith("measured/")}
    assert os.listdir(sshd.remote / "runs") == os.listdir(sshd.remote / "partial") == []
    assert os.listdir(sshd.device) == ["cache"]
    assert os.listdir(sshd.device / "cache") == ["edgevlm"]
    assert os.listdir(sshd.device / "cache" / "edgevlm") == ["remote"]

    first = link.sent
    assert first > sum(f.bytes for f in exported.bundle.plan.files)
    again = measure()
    assert again.exit_code == 0, again.stderr
    assert "copied" not in again.stderr
    assert link.sent - first < first / 10  # the picture, and words


def test_only_what_differs_is_copied(measure, sshd, tree, exported):
    sshd.start()
    outside = sshd.device / "cache" / "edgevlm" / "mine"
    outside.parent.mkdir(parents=True)
    outside.write_text("mine")
    bundle = sshd.remote / "bundles" / "tiny.edgevlm"
    assert measure().exit_code == 0
    before = tree(bundle)
    name = next(f.path for f in exported.bundle.plan.files if f.path.endswith(".weights"))
    changed = bundle / name
    changed.write_bytes(bytes(changed.stat().st_size))
    (bundle / "blocks" / "of an earlier bundle").write_text("x")
    done = measure()
    assert done.exit_code == 0, done.stderr
    size = len(before[name]) + len(before["manifest.json"])
    assert copied(done)[0] == pytest.approx(size / 1e6, abs=0.06)
    assert copied(done)[1] > 0.5
    assert tree(bundle) == before
    assert outside.read_text() == "mine"


def test_a_link_that_is_cut_while_it_copies(measure, refused, sshd, link, tree, exported, tmp_path):
    sshd.start()
    assert measure().exit_code == 0
    bundle = sshd.remote / "bundles" / "tiny.edgevlm"
    whole = tree(bundle)
    for name, path in files(bundle).items():
        if name != "manifest.json":  # the mark of a whole bundle, which this is no more
            path.unlink()
    total = sum(map(len, whole.values()))
    # In the middle of the largest file, whatever the client says besides.
    order = exported.bundle.plan.files
    largest = max(order, key=lambda f: f.bytes)
    before = sum(f.bytes for f in order[: order.index(largest)])
    link.sent, link.cut_after = 0, before + largest.bytes // 2 + 60_000
    out = tmp_path / "out" / "p.json"
    out.parent.mkdir()
    assert refused("-o", out) == f"the link to {HOST} was cut; {AGAIN}"
    assert list(out.parent.iterdir()) == []
    assert "manifest.json" not in files(bundle)
    kept = [
        p.stat().st_size
        for p in (*files(bundle).values(), *files(sshd.remote / "partial").values())
    ]
    assert before < sum(kept) < before + largest.bytes
    assert list(files(sshd.remote / "partial")) == [largest.sha256]

    link.sent, link.cut_after = 0, None
    done = measure("-o", out)
    assert done.exit_code == 0, done.stderr
    # Not a byte twice: the rest of the file that was cut too.
    assert copied(done)[0] == pytest.approx((total - sum(kept)) / 1e6, abs=0.06)
    assert copied(done)[1] == pytest.approx(sum(kept) / 1e6, abs=0.06)
    assert link.sent < total - sum(kept) + 350_000  # the picture, and words
    assert tree(bundle) == whole


def test_a_partial_file_that_is_none_is_sent_anew(measure, sshd, tree, exported):
    sshd.start()
    files = sorted(exported.bundle.plan.files, key=lambda f: f.bytes)
    (sshd.remote / "partial").mkdir(parents=True)
    (sshd.remote / "partial" / files[-1].sha256).write_bytes(b"of another file")
    (sshd.remote / "partial" / files[-2].sha256).write_bytes(bytes(files[-2].bytes + 1))
    done = measure()
    assert done.exit_code == 0, done.stderr
    here = exported.bundle.path
    there = sshd.remote / "bundles" / "tiny.edgevlm"
    for file in files[-2:]:
        assert (there / file.path).read_bytes() == (here / file.path).read_bytes()


@pytest.mark.parametrize("how", ["the link is cut", "Ctrl-C"])
def test_an_end_while_it_measures(start, measure, sshd, link, tmp_path, exported, how):
    sshd.start()
    out = tmp_path / "p.json"
    bundle = exported.bundle.path
    process = start("profile", bundle, *QUICK, "--minutes", "5", "--device", HOST, "-o", out)
    said = []
    while "without a pause" not in (line := process.stderr.readline()):
        said.append(line)
        assert line, said
    (runner,) = runners(sshd.device)
    if how == "Ctrl-C":
        process.send_signal(signal.SIGINT)
        expected = (
            "edgevlm: stopped; nothing is half-written, the same command goes on where it can\n"
        )
    else:
        link.cut()
        expected = f"edgevlm: the link to {HOST} was cut; {AGAIN}\n"
    rest = process.communicate(timeout=30)[1].splitlines(keepends=True)
    assert (process.returncode, rest[-1]) == (1, expected)
    assert not any(line.startswith(("Traceback", " ")) for line in rest)
    wait_for(lambda: runner not in runners(sshd.device))
    assert not out.exists()
    done = measure("-o", out)
    assert done.exit_code == 0, done.stderr
    assert "copied" not in done.stderr
    assert os.listdir(sshd.remote / "runs") == []


def test_one_visit_at_a_time(start, refused, sshd, exported):
    if shutil.which("flock") is None:
        pytest.skip("this system has no flock")
    sshd.start()
    process = start("profile", exported.bundle.path, *QUICK, "--minutes", "5", "--device", HOST)
    while "answer" not in process.stderr.readline():
        pass
    assert refused() == f"{HOST} is busy: another edgevlm profiles there; wait"
    process.kill()
    process.communicate()
    wait_for(lambda: not runners(sshd.device))


def test_who_is_not_let_in(refused, sshd):
    sshd.start()
    by_hand = "ssh 127.0.0.1"
    (sshd.home / "known_hosts").write_text("")
    assert refused() == (
        f"{HOST}: its host key is not known; connect once by hand and compare it: {by_hand}"
    )
    sshd.know()
    sshd.stop()
    sshd.key("host")
    sshd.start()
    assert refused() == (
        f"{HOST}: its host key is not the one that is known: another machine may pretend to be it;"
        f" if you know why it changed, run: ssh-keygen -R 127.0.0.1; {by_hand}"
    )
    sshd.know()
    sshd.key("id")
    assert refused() == (
        f"{HOST}: no key of yours is accepted; see that this works without a password: {by_hand}"
    )
    sshd.stop()
    assert refused() == f"{HOST}: nothing listens there; is sshd running, and the port right?"
    assert not sshd.remote.exists()


def test_a_host_that_does_not_exist(refused, sshd):
    assert refused(device="ssh:no.such.host.invalid:2222") == (
        "ssh:no.such.host.invalid:2222: no such host; see ~/.ssh/config or the name's spelling"
    )


@pytest.mark.parametrize(
    "address", ["", "@h", "-oProxyCommand=x", "a b", "h:99999999", "h:x", "me@-h", "h;x", "[::1"]
)
def test_an_address_that_is_none(refused, sshd, address):
    assert refused(device=f"ssh:{address}").startswith(
        f"'ssh:{address}' is no host; expected ssh:USER@HOST or ssh:USER@HOST:PORT"
    )


@pytest.mark.parametrize(
    ("address", "destination", "port"),
    [("h", "h", None), ("me@h.local:22", "me@h.local", "22"), ("me@[::1]:7", "me@::1", "7")],
)
def test_addresses(sshd, address, destination, port):
    host = ssh.Host(address)
    assert (host.destination, host.port, host.name) == (destination, port, f"ssh:{address}")


def test_no_ssh_here(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused() == "there is no 'ssh' here; install OpenSSH's client (openssh-client)"


def test_no_python_there(refused, sshd, tools):
    sshd.start(path=tools())
    assert refused() == f"{HOST} has no Python; install Python 3.11 or newer there"


def test_an_old_python_there(refused, sshd, tools):
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


def test_no_network_there(refused, sshd, tools):
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


def test_a_device_with_the_fewest_tools(measure, sshd, tools):
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


def test_too_little_room_for_the_bundle(measure, refused, sshd, disk):
    sshd.start()
    assert measure().exit_code == 0
    shutil.rmtree(sshd.remote / "bundles")
    state = os.statvfs(sshd.remote)
    (sshd.device / "cache" / "other").write_bytes(bytes(state.f_bavail * state.f_frsize - 500_000))
    line = refused()
    assert line.startswith(f"{HOST} has 0.5 MB free for '{sshd.remote}' and bundles/tiny.edgevlm")
    assert line.endswith(f"needs 1.2 MB more; make room there, and {AGAIN}")
    assert files(sshd.remote / "partial") == {}


def test_a_disk_that_gets_full(measure, refused, sshd, disk):
    sshd.start()
    assert measure().exit_code == 0
    shutil.rmtree(sshd.remote / "bundles")
    state = os.statvfs(sshd.remote)
    # `df` sees bytes; here it is the number of files that runs out on the way.
    disk(f"remount,nr_inodes={state.f_files - state.f_ffree + 20}")
    line = refused()
    assert line.startswith(f"{HOST} has no room left in '{sshd.remote}' (")
    assert line.endswith(f"No space left on device); make room there, and {AGAIN}")
    assert "manifest.json" not in files(sshd.remote / "bundles" / "tiny.edgevlm")
    disk("remount,nr_inodes=10000")
    done = measure()
    assert done.exit_code == 0, done.stderr
    assert copied(done)[1] > 0


def test_what_fails_there_is_one_line(refused, sshd, tmp_path):
    sshd.start()
    log = tmp_path / "device.log"
    assert refused("--memory", "1MB", "--log", log).startswith(
        f"{HOST}: a budget of 1 MB is too small"
    )
    assert "open the bundle" in log.read_text("utf-8")
    assert refused("--engine", "onnx").startswith("unknown engine 'onnx'; did you mean")
    assert os.listdir(sshd.remote / "runs") == []


def test_what_is_wrong_here_is_refused_before_any_connection(refused, sshd, tmp_path):
    assert refused("--image", "no.jpg").startswith("no image at 'no.jpg'")
    assert refused(bundle=tmp_path).endswith("has no manifest.json: it is not a bundle")
    assert refused("--runner", "a.apk").startswith("--runner is for phones: device 'ssh' takes")
    assert refused("--log", tmp_path).endswith("cannot be written: it is a folder")


def test_a_hostile_device(refused, sshd, tools, tmp_path):
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
    for name, text, size, expected in [
        ("profile.json", "{", None, f"{HOST} sent no profile: 'profile.json' is not valid JSON"),
        ("profile.json", " ", 64_000_001, f"{HOST} sent more than 64000000 bytes"),
        ("error.txt", "no\n\x1b[2Jroom " + "x" * 1000, None, f"{HOST}: no [2Jroom xxx"),
        ("other", "", None, f"{HOST}: the run there ended with exit code 0"),
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
    import io
    import zipfile

    packed = ssh.sources()
    assert packed == ssh.sources()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names = archive.namelist()
    assert {"edgevlm/api.py", "edgevlm/runtimes/text.py", "edgevlm/devices/_runner.py"} <= {*names}
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


def test_hosts_of_a_configuration(tmp_path):
    config = tmp_path / "config"
    config.write_text("Host jetson pi *.local !x\n  User me\nhost other\nMatch all\n")
    assert ssh._named_hosts(config) == ["jetson", "pi", "other"]
    assert ssh._named_hosts(tmp_path / "none") == []


def test_bad_addresses_never_reach_a_shell():
    with pytest.raises(DeviceError, match="is no host"):
        ssh.Host("h\n-x")
