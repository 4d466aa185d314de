"""Addresses, hosts and keys of ssh: who is let in, and what the refusal says."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")

from edgevlm.devices import ssh
from edgevlm.errors import DeviceError

HOST = "ssh:127.0.0.1"


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
        f"{HOST}: no key of yours is accepted; check that this works without a password: {by_hand}"
    )
    sshd.stop()
    assert refused() == f"{HOST}: nothing listens there; is sshd running, and the port right?"
    assert not sshd.remote.exists()


def test_a_host_that_does_not_exist(refused, sshd):
    assert refused(device="ssh:no.such.host.invalid:2222") == (
        "ssh:no.such.host.invalid:2222: no such host; check ~/.ssh/config and the spelling"
    )


@pytest.mark.parametrize(
    "address", ["", "@h", "-oProxyCommand=x", "a b", "h:99999999", "h:x", "me@-h", "h;x", "[::1"]
)
def test_an_address_that_is_none(refused, sshd, address):
    assert refused(device=f"ssh:{address}").startswith(
        f"'ssh:{address}' is not a host; expected ssh:USER@HOST or ssh:USER@HOST:PORT"
    )


@pytest.mark.parametrize(
    ("address", "destination", "port"),
    [("h", "h", None), ("me@h.local:22", "me@h.local", "22"), ("me@[::1]:7", "me@::1", "7")],
)
def test_addresses(sshd, address, destination, port):
    host = ssh.SshHost(address)
    assert (host.destination, host.port, host.name) == (destination, port, f"ssh:{address}")


def test_no_ssh_here(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused() == "'ssh' is not installed; install OpenSSH's client (openssh-client)"


def test_hosts_of_a_configuration(tmp_path):
    config = tmp_path / "config"
    config.write_text("Host jetson pi *.local !x\n  User me\nhost other\nMatch all\n")
    assert ssh._named_hosts(config) == ["jetson", "pi", "other"]
    assert ssh._named_hosts(tmp_path / "none") == []


def test_bad_addresses_never_reach_a_shell():
    with pytest.raises(DeviceError, match="is not a host"):
        ssh.SshHost("h\n-x")
