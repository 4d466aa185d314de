"""Devices on loopback: a real sshd with keys of its own, and a link that can be cut."""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

SSH, SSHD = shutil.which("ssh"), shutil.which("sshd") or "/usr/sbin/sshd"
# Not the user's: a client that finds no other configuration takes no key and no host of theirs.
CLIENT = """
Host *
  User {user}
  Port {port}
  IdentityFile {home}/id
  IdentitiesOnly yes
  IdentityAgent none
  GlobalKnownHostsFile /dev/null
  UserKnownHostsFile {home}/known_hosts
"""
SERVER = """
ListenAddress 127.0.0.1:{port}
HostKey {home}/host
AuthorizedKeysFile {home}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HOME={device} XDG_CACHE_HOME={device}/cache PATH={path} {environment}
{more}
"""


class Sshd:
    """A server of this user on a free port. What it runs has `device` for its home."""

    def __init__(self, home: Path) -> None:
        self.home, self.device, self.port = home, home / "device", free_port()
        self.remote = self.device / "cache" / "edgevlm" / "remote"
        self.process: subprocess.Popen[bytes] | None = None
        self.device.mkdir()
        for name in ("id", "host"):
            self.key(name)
        shutil.copy(home / "id.pub", home / "authorized")
        self.know()
        self.client(self.port)

    def key(self, name):
        for path in (self.home / name, self.home / f"{name}.pub"):
            path.unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.home / name]
        subprocess.run(command, check=True)

    def know(self):
        """The client knows this server's key, whatever port it comes by."""
        key = " ".join((self.home / "host.pub").read_text().split()[:2])
        (self.home / "known_hosts").write_text(f"* {key}\n")

    def client(self, port):
        """Write a client's configuration, and an `ssh` that reads it instead of the user's."""
        text = CLIENT.format(user=getpass.getuser(), port=port, home=self.home)
        (self.home / "config").write_text(text)
        folder = self.home / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "ssh"
        program.write_text(f'#!/bin/sh\nexec {SSH} -F {self.home}/config "$@"\n')
        program.chmod(0o755)

    def start(self, *more, path=None, environment=""):
        path = path or f"{Path(sys.executable).parent}:/usr/bin:/bin"
        (self.home / "sshd_config").write_text(
            SERVER.format(
                port=self.port, home=self.home, device=self.device, path=path,
                environment=environment, more="\n".join(more),
            )
        )  # fmt: skip
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # it wants to be confined there
        command = [SSHD, "-D", "-f", self.home / "sshd_config", "-E", self.home / "sshd.log"]
        self.process = subprocess.Popen(command)
        end = time.monotonic() + 10
        while time.monotonic() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.02)
        raise RuntimeError((self.home / "sshd.log").read_text())

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Link:
    """A way to a port that counts the bytes that go there, and is cut after `cut_after` of them."""

    def __init__(self, port: int) -> None:
        self.target, self.sent, self.cut_after = port, 0, None
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port, self.open = self.server.getsockname()[1], []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        for end in self.open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self):
        self.server.close()
        self.cut()

    def _accept(self):
        while True:
            try:
                here, _ = self.server.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self.target))
            self.open += [here, there]
            for pair in ((here, there, True), (there, here, False)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, sink, counted):
        try:
            while data := source.recv(4096):
                sink.sendall(data)
                if counted:
                    self.sent += len(data)
                    if self.cut_after is not None and self.sent >= self.cut_after:
                        time.sleep(0.5)  # what has arrived is written there
                        self.cut()
        except OSError:
            pass
        for end in (source, sink):
            end.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def refused(measure):
    """Run a module's `measure` and give the one line of its refusal."""

    def call(*more, **options):
        done = measure(*more, **options)
        assert (done.exit_code, done.stdout) == (1, "")
        lines = done.stderr.splitlines()
        assert lines[-1].startswith("edgevlm: ")
        assert all(line.startswith("[") for line in lines[:-1])
        return lines[-1].removeprefix("edgevlm: ")

    return call


@pytest.fixture
def sshd(tmp_path, monkeypatch):
    """A server that the test starts; `ssh` on the path finds it at any host name."""
    if not Path(SSHD).is_file() or SSH is None:
        pytest.skip("sshd is not installed (openssh-server)")
    home = tmp_path / "ssh"
    home.mkdir()
    server = Sshd(home)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    yield server
    server.stop()


@pytest.fixture
def link(sshd):
    """A link between the client and the server."""
    made = Link(sshd.port)
    sshd.client(made.port)
    yield made
    made.close()


@pytest.fixture
def phones(tmp_path, monkeypatch):
    """`phones(state=…)`: a scripted phone that a real adb server, of the test's own, knows."""
    adb = shutil.which("adb")
    if adb is None:
        pytest.skip("adb is not installed")
    path = Path(__file__).with_name("scripted_phone.py")
    spec = importlib.util.spec_from_file_location("scripted_phone", path)
    scripted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scripted)
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # for adb's own key
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    (tmp_path / "home").mkdir()
    made = []

    def make(**options):
        phone = scripted.Phone(tmp_path / f"phone-{len(made)}", **options)
        made.append(phone)
        command = [adb, "connect", phone.serial]
        if phone.state == "offline":  # it answers when it has waited for ten seconds
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        else:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        end = time.monotonic() + 20
        while f"{phone.serial}\t{phone.state}" not in _devices(adb):
            assert time.monotonic() < end, _devices(adb)
            time.sleep(0.05)
        return phone

    yield make
    for phone in made:
        phone.unplug()
    subprocess.run([adb, "kill-server"], capture_output=True, timeout=60)


def _devices(adb):
    return subprocess.run([adb, "devices"], capture_output=True, text=True, timeout=60).stdout
