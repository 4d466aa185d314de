"""`--device ssh:…` against a real sshd on loopback: the whole way, and every fault on it."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")

from edgevlm.profile import read_profile

QUICK = ("--threads", "1", "--runs", "1", "--tokens-generated", "2")
HOST = "ssh:127.0.0.1"


@pytest.fixture
def measure(command, exported, tmp_path):
    """Run `edgevlm profile --device ssh:127.0.0.1` as a process of its own."""

    def run(*more, device=HOST, bundle=exported.bundle.path):
        return command("profile", bundle, *QUICK, "--device", device, *more)

    return run


def test_the_whole_way(measure, sshd, tmp_path, tree, exported):
    sshd.start()
    out, log = tmp_path / "p.json", tmp_path / "device.log"
    done = measure("-o", out, "--log", log)
    assert done.code == 0, done.err
    found = read_profile(out)
    assert (found.device, found.question.image, found.bundle) == (HOST, "scene.png", "tiny.edgevlm")
    assert "answer 1 of 1" in log.read_text()
    print(done.err, done.out)
