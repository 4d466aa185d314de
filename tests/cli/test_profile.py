"""`edgevlm profile` and `edgevlm compare`: files, text, exit codes."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("onnxruntime")

from edgevlm.profiling.document import parse_profile, read_profile

QUICK = ("--threads", "1", "--runs", "2", "--tokens-generated", "3")


@pytest.fixture
def profiled(run, exported, tmp_path):
    path = tmp_path / "a.json"
    done = run("profile", exported.bundle.path, *QUICK, "-o", path)
    assert done.exit_code == 0, done.stderr
    return path


def test_files_and_text(run, exported, tmp_path):
    paths = [tmp_path / name for name in ("p.json", "r.html", "t.json")]
    done = run(
        "profile", exported.bundle.path, *QUICK, "-o", paths[0], "--report", paths[1],
        "--trace", paths[2],
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    found = read_profile(paths[0])
    for block in found.blocks:
        assert f"\n{block.name}.{block.function} " in done.stdout
    assert "floor of a token: " in done.stdout
    assert f"operators: {len(found.operators):,} on cpu; fallback 0" in done.stdout
    assert "not measured: budget_bytes: no --memory was given" in done.stdout
    assert all(f"wrote {path}" in done.stderr for path in paths)
    assert paths[1].read_text("utf-8").startswith("<!doctype html>")
    assert json.loads(paths[2].read_text("utf-8"))["traceEvents"]


def test_json_is_the_last_line(run, exported):
    done = run("profile", exported.bundle.path, *QUICK, "--json", "--max-fallback", "0")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert parse_profile(done.stdout).runs == 2


def test_too_many_operators_elsewhere(run, exported, monkeypatch):
    from edgevlm.runtimes.on_onnxruntime import operators as operators_on_onnxruntime

    monkeypatch.setattr(operators_on_onnxruntime, "PROVIDER", "npu")
    done = run("profile", exported.bundle.path, *QUICK, "--max-fallback", "3", "--json")
    assert done.exit_code == 1
    count = parse_profile(done.stdout).fallback
    assert count > 3
    assert done.stderr.splitlines()[-1] == (
        f"edgevlm: fallback is {count}, --max-fallback allows 3 ({count} on cpu)"
    )


def test_max_fallback_where_nobody_counts(run, exported, monkeypatch):
    from edgevlm.runtimes import engine
    from edgevlm.runtimes.on_onnxruntime.engine import Engine

    monkeypatch.setattr(Engine, "operators", engine.Engine.operators)
    done = run("profile", exported.bundle.path, *QUICK, "--max-fallback", "3")
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "edgevlm: --max-fallback cannot be checked: engine 'onnxruntime' reports no operators"
    )


def test_operators_that_cannot_be_looked_at_lose_nothing_else(run, exported, monkeypatch):
    from edgevlm.errors import BundleError
    from edgevlm.runtimes.on_onnxruntime.engine import Engine

    def fail(engine, calls):
        raise BundleError("'a.kernels.json' is not valid")

    monkeypatch.setattr(Engine, "operators", fail)
    done = run("profile", exported.bundle.path, *QUICK, "--json")
    assert done.exit_code == 0, done.stderr
    found = parse_profile(done.stdout)
    assert found.operators is found.placement is found.fallback is None
    assert found.not_measured["placement"] == "'a.kernels.json' is not valid"
    assert found.stages["vision"].median < found.ttft_ms < found.end_to_end_ms.median


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "sssh:me@board"), "unknown device 'sssh'; did you mean 'ssh'?"),
        (("--device", "local:2"), "'local' is this machine and takes no address, got '2'"),
        (("--log", "d.log"), "--log keeps the messages of another device; leave it out for"),
        (("--runner", "a.apk"), "--runner is for phones: device 'local' takes none; leave it out"),
        (("-o", "no/such/p.json"), "'no/such/p.json' cannot be written: the folder"),
        (("--report", "."), "'.' cannot be written: it is a folder; give a file name"),
        (("--image", "no.jpg"), "no image at 'no.jpg'"),
        (("--memory", "1MB"), "a budget of 1 MB is too small"),
    ],
)
def test_a_wrong_input_is_one_line(run, exported, options, message):
    done = run("profile", exported.bundle.path, *QUICK, *options)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("edgevlm: ")
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""


@pytest.mark.parametrize("option", ["--runs=0", "--tokens-generated=1", "--minutes=-1"])
def test_wrong_usage(run, exported, option):
    assert run("profile", exported.bundle.path, option).exit_code == 2


def test_compare(run, profiled, tmp_path):
    document = json.loads(profiled.read_text("utf-8"))
    slow = next(b for b in document["blocks"] if b["function"] == "encode")
    slow["run_ms"]["median"] *= 1.5
    other = tmp_path / "b.json"
    other.write_text(json.dumps(document), "utf-8")
    done = run("compare", profiled, other, "--report", tmp_path / "c.html")
    assert done.exit_code == 0, done.stderr
    (marked,) = [line for line in done.stdout.splitlines() if line.endswith("SLOWER")]
    assert marked.startswith(f"{slow['name']}.encode")
    assert "1.50" in marked
    last = "same kind, machine, engine, threads, recipe, device, budget and question\n"
    assert done.stdout.endswith(last)
    assert f"{slow['name']}.encode" in (tmp_path / "c.html").read_text("utf-8")
    found = json.loads(run("compare", profiled, other, "--json").stdout)
    assert found["slower"] == [f"{slow['name']}.encode"]
    assert set(found) == {"a", "b", "same", "blocks", "stages", "totals", "slower"}


def test_compare_refuses_an_unknown_key(run, profiled):
    document = json.loads(profiled.read_text("utf-8"))
    profiled.write_text(json.dumps(document | {"speed": 1}), "utf-8")
    done = run("compare", profiled, profiled)
    assert done.exit_code == 1
    assert done.stderr == "edgevlm: a.json has an unknown key 'speed'\n"
    done = run("compare", profiled, profiled.with_name("gone.json"))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
