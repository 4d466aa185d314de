"""What engines build once: built again when it is damaged, removed when it is old, held in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgevlm.bundle import cache
from edgevlm.bundle.cache import cache_folder
from edgevlm.runtimes import built

ROOT = Path(__file__).resolve().parents[2]
ZEROS = bytes(100_000)
DATA = os.urandom(50_000) * 2


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_CHECKED", {})
    monkeypatch.setattr(built, "_HELD", {})


@pytest.fixture
def build():
    """Build an entry; `.count` is how often that was done."""

    def make(work):
        build_one.count += 1
        (work / "made" / "deep").mkdir(parents=True)
        (work / "made" / "deep" / "matrices").write_bytes(DATA)
        (work / "made" / "graph").write_text("graph")
        return work / "made"

    def build_one(contents="a", kind="onnxruntime"):
        return built.build_once(kind, contents, make)

    build_one.count = 0
    return build_one


def forget(monkeypatch, boot="another start"):
    """As in a new process, after a new start of the machine."""
    monkeypatch.setattr(cache, "_CHECKED", {})
    for lock in built._HELD.values():
        os.close(lock)
    monkeypatch.setattr(built, "_HELD", {})
    monkeypatch.setattr(built, "_boot", lambda: boot)


def zeros_of_the_same_times(path):
    """What a power cut leaves: size and times as they were, for the test even the inode."""
    before = path.stat()
    path.write_bytes(ZEROS)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGES = {
    "cut": lambda made: os.truncate(made / "graph", 2),
    "half": lambda made: os.truncate(made / "deep/matrices", 50_000),
    "empty": lambda made: os.truncate(made / "deep/matrices", 0),
    "zeros": lambda made: (made / "deep/matrices").write_bytes(ZEROS),
    "zeros of the same times": lambda made: zeros_of_the_same_times(made / "deep/matrices"),
    "gone": lambda made: (made / "graph").unlink(),
    "all gone": lambda made: [p.unlink() for p in (made / "graph", made / "deep/matrices")],
    "a link": lambda made: ((made / "graph").unlink(), (made / "graph").symlink_to("deep")),
    "no record": lambda made: (made.parent / "record.json").unlink(),
    "half a record": lambda made: os.truncate(made.parent / "record.json", 30),
    "another record": lambda made: (made.parent / "record.json").write_text("[1]"),
    "an old layout": lambda made: (made.rename(made.parents[1] / "x"), made.parent.mkdir),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("process", ["same", "another"])
def test_what_is_damaged_is_built_again(build, monkeypatch, damage, process):
    made = build()
    assert build() == made
    assert build.count == 1
    damage(made)
    if process == "another":
        forget(monkeypatch, built._boot())
    assert build() == made
    assert build.count == 2
    assert (made / "deep/matrices").read_bytes() == DATA
    assert (made / "graph").read_text() == "graph"
    build()
    assert build.count == 2


def test_contents_are_read_once_after_each_start_of_the_machine(build, monkeypatch):
    read, sha256 = [], built.sha256
    monkeypatch.setattr(built, "sha256", lambda path: read.append(path.name) or sha256(path))
    for boot, expected in (
        ("first", ["matrices", "graph"]),
        ("first", []),
        ("second", 2),
        ("second", []),
    ):
        forget(monkeypatch, boot)
        read.clear()
        build()
        assert len(read) == (expected if isinstance(expected, int) else len(expected))
    assert build.count == 1
    # Damaged by a power cut: size, times and inode are as they were when it was checked.
    made = build()
    monkeypatch.setattr(built, "_mark", lambda path, digest: [path.stat().st_size, built._boot()])
    zeros_of_the_same_times(made / "deep/matrices")
    forget(monkeypatch, "third")
    build()
    assert build.count == 2
    assert (made / "deep/matrices").read_bytes() == DATA


def test_it_is_on_the_disk_before_it_has_its_name(build, monkeypatch):
    order, fsync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("fsync") or fsync(handle))
    monkeypatch.setattr(Path, "rename", lambda a, b: order.append("rename") or rename(a, b))
    build()
    before = order[: order.index("rename")]
    assert before.count("fsync") >= 3  # two files and the record
    assert order[order.index("rename") + 1] == "fsync"


def test_a_failed_build_leaves_nothing(build):
    def fail(work):
        (work / "made").mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        built.build_once("onnxruntime", "a", fail)
    assert os.listdir(cache_folder() / "onnxruntime") == []
    # Of a build that was killed.
    (cache_folder() / "onnxruntime" / ".work-x").mkdir()
    made = build()
    assert os.listdir(made.parents[1]) == [made.parent.name]


def test_the_time_of_a_build_is_known(build):
    assert 0 <= built.build_ms(build()) < 60_000
    assert built.build_ms(cache_folder() / "no" / "made") is None


def aged(made, hours):
    """Make an entry old."""
    then = made.parent.stat().st_mtime - 3600 * hours
    os.utime(made.parent / "record.json", (then, then))


def test_the_oldest_are_removed_first(build, monkeypatch):
    monkeypatch.setenv("EDGEVLM_CACHE_LIMIT", "250kB")
    old, older, new = (build(name) for name in "abc")
    assert all(made.is_dir() for made in (old, older, new))  # this process uses all of them
    forget(monkeypatch)
    aged(old, 1), aged(older, 2)
    build("d")
    assert [made.is_dir() for made in (old, older, new)] == [False, False, True]
    assert build.count == 4


def test_bundles_count_and_stay_while_they_may_be_in_use(build, monkeypatch):
    root = cache_folder()
    for name, hours in (("old.edgevlm", 48), ("new.edgevlm", 2)):
        (root / name).mkdir(parents=True)
        (root / name / "manifest.json").write_bytes(bytes(1000))
        then = (root / name).stat().st_mtime - 3600 * hours
        os.utime(root / name / "manifest.json", (then, then))
    for folder in ("measured", "remote"):
        (root / folder).mkdir()
        (root / folder / "file").write_bytes(bytes(1000))
    build()
    assert [e.path.name for e in built.entries()][1:] == ["new.edgevlm", "old.edgevlm"]
    built.shrink(0)
    assert sorted(os.listdir(root)) == [
        "checked.json", "measured", "new.edgevlm", "onnxruntime", "onnxruntime.lock", "remote",
    ]  # fmt: skip
    assert len(built.entries()) == 2  # the other one is held by this process


HOLD = """
import sys
from edgevlm.runtimes import built
def make(work):
    (work / "made").mkdir()
    (work / "made" / "file").write_bytes(bytes(1000))
    print("building", flush=True)
    if sys.stdin.readline().strip() == "fail":
        raise OSError("no")
    return work / "made"
print(built.build_once("onnxruntime", "a", make), flush=True)
sys.stdin.readline()
"""


def start():
    return subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def say(process, line=""):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def test_of_two_processes_one_builds_and_both_hold(run):
    pytest.importorskip("fcntl")
    first = start()
    assert first.stdout.readline() == "building\n"
    second = start()
    say(first)
    made = first.stdout.readline()
    assert second.stdout.readline() == made  # it built nothing
    assert len(built.entries()) == 1
    built.shrink(0)
    done = run("cache", "--clear")
    assert done.exit_code == 0
    assert "removed 0 entries, 0.0 MB; the others are in use" in done.stderr
    for process in (first, second):
        process.communicate("\n")
    done = run("cache", "--clear", "--json")
    document = json.loads(done.stdout)
    assert document["entries"] == []
    assert document["removed_bytes"] > 1000
    assert not Path(made.strip()).exists()


def test_the_command_shows_what_is_there(run, build, monkeypatch):
    assert run("cache").stdout.splitlines()[-1].endswith("/edgevlm: 0.0 MB of at most 10,000.0 MB")
    made = build()
    monkeypatch.setenv("EDGEVLM_CACHE_LIMIT", "1MB")
    lines = run("cache").stdout.splitlines()
    assert lines[0].split() == ["entry", "size", "last", "use"]
    assert lines[1].split()[:3] == [f"onnxruntime/{made.parent.name}", "0.1", "MB"]
    assert lines[-1].endswith(": 0.1 MB of at most 1.0 MB")
    document = json.loads(run("cache", "--json").stdout)
    assert document["limit_bytes"] == 10**6
    assert document["bytes"] == document["entries"][0]["bytes"] > 100_000
    monkeypatch.setenv("EDGEVLM_CACHE_LIMIT", "much")
    done = run("cache")
    assert done.exit_code == 1
    assert (
        done.stderr == "edgevlm: EDGEVLM_CACHE_LIMIT: a size looks like 64MB or 1.5GB, got 'much'\n"
    )
