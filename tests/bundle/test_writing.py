"""Writes: completely or not at all, and never through a link of somebody else's bundle."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from edgevlm.bundle import writing
from edgevlm.bundle.files import Bundle
from edgevlm.bundle.files import writing as begin
from edgevlm.errors import InputError

MINE = "export PATH\n"


@pytest.fixture
def mine(tmp_path):
    """A file of the user's, outside of everything."""
    path = tmp_path / "bashrc"
    path.write_text(MINE)
    return path


@pytest.fixture
def names(monkeypatch):
    """The names under which files are opened for writing; each is taken by the next `os.open`."""
    opened, real = [], os.open

    def record(path, flags, *mode, **more):
        if flags & os.O_WRONLY:
            opened.append((os.path.basename(path), flags))
        return real(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", record)
    return opened


def test_a_fresh_name_then_the_name(tmp_path, names, monkeypatch):
    order, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("fsync") or fsync(handle))
    path = tmp_path / "a.json"
    for text in ("one\r\n", "two"):
        writing.write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert os.listdir(tmp_path) == ["a.json"]
    (first, flags), (second, _) = names
    assert first != second
    assert first.startswith(".a.json.")
    assert flags & os.O_EXCL
    assert flags & os.O_NOFOLLOW
    assert order == ["fsync"] * 4  # file and folder


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("before")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError) as error:
        writing.write_text(path, "after")
    assert str(error.value) == f"'{path}' cannot be written: No space left on device"
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_link_of_the_users_own_is_replaced(tmp_path, mine):
    (tmp_path / "out").symlink_to(mine)
    writing.write_text(tmp_path / "out", "text")
    assert mine.read_text() == MINE
    assert (tmp_path / "out").read_text() == "text"


def test_a_pipe_and_an_open_file_are_written_directly(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    writing.write_text(pipe, "text")
    reader.join(10)
    assert got == ["text"]
    with (tmp_path / "stdout").open("w") as file:
        writing.write_text(Path(f"/dev/fd/{file.fileno()}"), "there")
    assert (tmp_path / "stdout").read_text() == "there"
    writing.write_text(Path("/dev/null"), "text")
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("link", ["measured", "measured/deep", "measured/deep/a.json"])
def test_no_link_inside_a_bundle_is_followed(tmp_path, mine, link):
    bundle, name = tmp_path / "b.edgevlm", "measured/deep/a.json"
    outside = tmp_path / "home"
    outside.mkdir()
    (bundle / link).parent.mkdir(parents=True)
    (bundle / link).symlink_to(mine if link == name else outside)
    if link == name:  # the link itself is replaced
        writing.write_inside(bundle, name, "text")
        assert (bundle / name).read_text() == "text"
        assert not (bundle / name).is_symlink()
    else:
        with pytest.raises(InputError) as error:
            writing.write_inside(bundle, name, "text")
        expected = f"'{bundle / link}' is a symbolic link, and nothing is written behind one"
        assert str(error.value) == expected
    assert mine.read_text() == MINE
    assert os.listdir(outside) == []


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_an_export_goes_on_in_no_folder_of_somebody_else(exported, tmp_path, mine, kind):
    plan = exported.bundle.plan
    out, block = tmp_path / "b.edgevlm", plan.blocks[0]
    with suppress(KeyboardInterrupt), begin(out, plan, "weights", force=False) as writer:
        writer.finish(block, block.functions)
        raise KeyboardInterrupt
    weights = tmp_path / ".b.edgevlm.partial/blocks/decoder/decoder-0.weights"
    weights.parent.mkdir(parents=True)
    make = {"link": weights.symlink_to, "hard link": weights.hardlink_to}
    make.get(kind, lambda _: os.mkfifo(weights))(mine)
    with suppress(KeyboardInterrupt), begin(out, plan, "weights", force=False) as writer:
        assert writer.finished(block) is None
        assert not os.path.lexists(weights)
        raise KeyboardInterrupt
    assert mine.read_text() == MINE


def test_saved_schedules_stay_inside_the_bundle(run, bundle_copy, mine):
    home = mine.parent / "home"
    home.mkdir()
    shutil.rmtree(bundle_copy / "measured")
    (bundle_copy / "measured").symlink_to(home)
    assert Bundle.open(bundle_copy)
    done = run("plan", bundle_copy, "--memory", "4GB", "--save")
    assert done.exit_code == 1
    assert "measured' is a symbolic link, and nothing is written behind one" in done.stderr
    assert os.listdir(home) == []
