"""Copying a bundle by ssh, and runs that end early: nothing is sent twice, nothing left half."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from edgevlm.profiling.document import read_profile

QUICK = ("--threads", "1", "--runs", "1", "--tokens-generated", "2")
HOST = "ssh:127.0.0.1"
AGAIN = "run the same command again: what was copied stays"


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
        if b"edgevlm.devices.shared.runner" in words and home.startswith(str(device)):
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
    assert (found.device, found.text.question.image, found.bundle) == (
        HOST,
        "scene.png",
        "tiny.edgevlm",
    )
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


def test_only_what_differs_is_copied(measure, sshd, visited, tree, exported):
    sshd.start()
    visited()
    outside = sshd.device / "cache" / "edgevlm" / "mine"
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


def test_a_link_that_is_cut_while_it_copies(
    measure, refused, sshd, visited, link, tree, exported, tmp_path
):
    sshd.start()
    visited()
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


def test_a_partial_file_that_is_none_is_sent_anew(measure, sshd, visited, tree, exported):
    sshd.start()
    visited()
    files = sorted(exported.bundle.plan.files, key=lambda f: f.bytes)
    (sshd.remote / "partial").mkdir()
    (sshd.remote / "partial" / files[-1].sha256).write_bytes(b"of another file")
    (sshd.remote / "partial" / files[-2].sha256).write_bytes(bytes(files[-2].bytes + 1))
    done = measure()
    assert done.exit_code == 0, done.stderr
    here = exported.bundle.path
    there = sshd.remote / "bundles" / "tiny.edgevlm"
    for file in files[-2:]:
        assert (there / file.path).read_bytes() == (here / file.path).read_bytes()


@pytest.mark.parametrize("how", ["the link is cut", "Ctrl-C"])
def test_an_end_while_it_measures(start, measure, sshd, visited, link, tmp_path, exported, how):
    sshd.start()
    visited()
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
            "edgevlm: stopped; no output is incomplete, and the same command continues where it"
            " can\n"
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


def test_one_visit_at_a_time(start, refused, sshd, visited, exported):
    if shutil.which("flock") is None:
        pytest.skip("this system has no flock")
    sshd.start()
    visited()
    process = start("profile", exported.bundle.path, *QUICK, "--minutes", "5", "--device", HOST)
    while "answer" not in process.stderr.readline():
        pass
    assert refused() == f"{HOST} is busy: another edgevlm uses it; wait, then try again"
    process.kill()
    process.communicate()
    wait_for(lambda: not runners(sshd.device))
