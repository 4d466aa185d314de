"""Threads: as many as the processors that a container may use, whatever is asked for."""

from __future__ import annotations

import logging
import os

import pytest

from edgevlm import libraries
from edgevlm.libraries import bounded_threads, processors

# Lines of /proc/self/cgroup, files below /sys/fs/cgroup, and the quota in processors.
GROUPS = {
    "version 2, in the container": ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
    "version 2, of a parent": (
        "0::/system.slice/docker.service\n",
        {"system.slice/cpu.max": "50000 100000\n",
         "system.slice/docker.service/cpu.max": "max 100000"},
        0.5,
    ),
    "version 2, the smaller one": (
        "0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "200000 100000"}, 2.0,
    ),
    "version 2, none": ("0::/a\n", {"a/cpu.max": "max 100000"}, None),
    "version 1": (
        "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n",
        {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "300000",
         "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000"}, 3.0,
    ),
    "version 1, in the container": (
        "4:cpu:/docker/of/the/host\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "25000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.25,
    ),
    "version 1, none": (
        "4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None,
    ),
    "of memory alone": ("4:memory:/\n", {"memory/cpu.max": "1 1"}, None),
    "nonsense": ("x\n\n0::/\n", {"cpu.max": "much"}, None),
}  # fmt: skip


@pytest.mark.parametrize(("groups", "files", "quota"), GROUPS.values(), ids=GROUPS)
def test_the_quota_of_a_container(tmp_path, groups, files, quota):
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert libraries._cpu_quota(tmp_path / "cgroup", tmp_path / "fs") == quota


def test_no_control_groups(tmp_path):
    assert libraries._cpu_quota(tmp_path / "no", tmp_path) is None


@pytest.mark.parametrize(("quota", "count"), [(None, 8), (0.25, 1), (1.0, 1), (1.5, 2), (64.0, 8)])
def test_processors_are_those_that_may_be_used(monkeypatch, quota, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(libraries, "_cpu_quota", lambda *_: quota)
    assert processors() == count


def test_more_threads_than_processors_are_bounded_and_said(monkeypatch, caplog):
    monkeypatch.setattr(libraries, "processors", lambda: 2)
    with caplog.at_level(logging.WARNING):
        assert [bounded_threads(n) for n in (1, 2, 64, 10**12)] == [1, 2, 2, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "64 threads for 2 processors: 2 used",
        "over a million threads for 2 processors: 2 used",
    ]


@pytest.mark.parametrize("threads", ["1000", "1000000000000"])
def test_the_command_says_so_and_answers(command, exported, threads):
    done = command("run", exported.bundle.path, "--prompt", "Hi", "--threads", threads,
                   "--max-new-tokens", "2")  # fmt: skip
    assert done.code == 0, done.err
    said, figures = done.err.splitlines()
    assert said.endswith(" used")
    assert " threads for " in said
    assert "tokens/s" in figures or "first token" in figures


def test_engines_and_pytorch_take_the_quota(exported, monkeypatch):
    torch = pytest.importorskip("torch")
    from edgevlm.runtimes.on_onnxruntime import engine

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(libraries, "processors", lambda: 1)
        monkeypatch.setattr(engine, "processors", lambda: 1)
        libraries.require_torch()
        assert torch.get_num_threads() == 1
        assert engine.Engine(exported.bundle).threads == 1
        assert engine.Engine(exported.bundle, 7).threads == 1
    finally:
        torch.set_num_threads(before)
