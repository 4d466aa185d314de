"""Exports that fail, are killed, stopped or repeated: what stands on disk afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from edgevlm.bundle.files import Bundle, writing
from edgevlm.cli import app
from edgevlm.errors import ExportError


@pytest.fixture
def options(tiny_model):
    """The recipe of the session's bundle, see conftest.py."""
    return (tiny_model, "--tokens", "16", "--block-size", "100kB")


def names(folder):
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def begun(forked):
    """Start a command as a process of its own."""
    main = pytest.importorskip("edgevlm.cli").main
    pytest.importorskip("torch")

    def start(*arguments):
        def act():
            sys.argv = ["edgevlm", *map(str, arguments)]
            main()

        return forked(act)

    return start


def ended(started, step, how):
    """Send a signal to a command that begins `step`; its exit code and stderr.

    Python loses an interrupt inside a finalizer, so each later step gets one more.
    """
    pid, said = started
    seen = ""
    with said:
        for line in said:
            seen += line
            if step in seen and "] export " in line:
                os.kill(pid, how)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen


def steps(stderr):
    """Blocks that an export says it exports."""
    return [line.split()[4] for line in stderr.splitlines() if "] export " in line]


def test_an_export_goes_on_after_kill_9_and_gives_the_same_bytes(
    options, exported, begun, run, tmp_path, tree
):
    out = tmp_path / "b.edgevlm"
    started = begun("export", *options, "-o", out)
    code, stderr = ended(started, "export decoder-1", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert "Traceback" not in stderr
    assert names(tmp_path) == [".b.edgevlm.partial"]
    # decoder-1 is now traced by itself; in one run it shares the graph of decoder-0.
    done = run("export", *options, "-o", out, "--json")
    assert done.exit_code == 0, done.stderr
    assert steps(done.stderr) == ["decoder-1", "head-0", "head-1", "head-2"]
    document = json.loads(done.stdout.splitlines()[-1])
    assert set(document) == {
        "bundle", "target", "blocks", "weights_bytes", "visual_tokens", "context_tokens",
        "kv_bytes", "seconds", "peak_rss_bytes",
    }  # fmt: skip
    assert document["bundle"] == str(out)
    assert document["blocks"] == 10
    assert names(tmp_path) == ["b.edgevlm"]
    assert tree(out) == tree(exported.bundle.path)


def test_graphs_of_other_exports_give_the_same_bytes(exported, lowered_once, tmp_path, tree):
    recipe = exported.bundle.plan.recipe
    lowered_once(replace(recipe, tokens=8, methods=("average_pool",)), tmp_path / "other.edgevlm")
    done = lowered_once(recipe, tmp_path / "b.edgevlm")
    kept, made = tree(exported.bundle.path), tree(done.bundle.path)
    del kept["measured/parity.json"], made["measured/parity.json"]
    assert made == kept


def test_ctrl_c_is_one_line_and_the_next_run_completes(
    options, exported, lowered_once, begun, tmp_path, tree
):
    out = tmp_path / "b.edgevlm"
    code, stderr = ended(begun("export", *options, "-o", out), "export vision-1", signal.SIGINT)
    assert code == 1, stderr
    expected = (
        "edgevlm: stopped; no output is incomplete, and the same command continues where it can"
    )
    assert stderr.splitlines()[-1] == expected
    assert "Traceback" not in stderr
    assert not out.exists()
    lines = []
    done = lowered_once(exported.bundle.plan.recipe, out, progress=lines.append)
    assert lines[:2] == ["plan", "load the model"]
    assert lines[2].startswith(f"export {steps(stderr)[-1]} ")
    assert names(tmp_path) == ["b.edgevlm"]
    assert tree(out) == tree(exported.bundle.path)
    assert done.bundle == Bundle(out, exported.bundle.plan)


def test_ctrl_c_before_the_first_block_leaves_nothing(options, run, monkeypatch, tmp_path):
    checkpoint = pytest.importorskip("edgevlm.models.checkpoint")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "load_model", stopped)
    done = run("export", *options, "-o", tmp_path / "b.edgevlm")
    assert done.exit_code == 1
    assert "load the model" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("edgevlm: stopped; no output is incomplete")
    assert names(tmp_path) == []


def test_no_build_path_in_any_file(exported, tiny_model, tree):
    marks = (b"/work", b"site-packages", b".py", b"/tmp", str(exported.bundle.path.parent).encode())
    for name, data in tree(exported.bundle.path).items():
        if name.endswith((".onnx", "manifest.json")):
            data = data.replace(tiny_model.encode(), b"")  # the model's name is its folder here
            for mark in marks:
                assert mark not in data, (name, mark)


@pytest.fixture
def run():
    """Run a command in this process: exit code, stdout, stderr; a traceback fails the test."""

    def call(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call


@pytest.fixture
def fails_after_a_block(monkeypatch):
    """An export whose second block cannot be exported."""
    pipeline = pytest.importorskip("edgevlm.pipeline")
    real = pipeline._export_block

    def export_block(block, *arguments):
        if block.name == "vision-1":
            raise ExportError("vision-1.encode differs from PyTorch: rel_error 2.00e-01")
        return real(block, *arguments)

    monkeypatch.setattr(pipeline, "_export_block", export_block)


def test_a_failed_export_leaves_nothing_behind(options, run, fails_after_a_block, tmp_path):
    done = run("export", *options, "-o", tmp_path / "b.edgevlm")
    assert done.exit_code == 1
    expected = "edgevlm: vision-1.encode differs from PyTorch: rel_error 2.00e-01"
    assert done.stderr.splitlines()[-1] == expected
    assert done.stdout == ""
    assert names(tmp_path) == []


def test_a_failed_export_with_force_keeps_the_old_bundle(
    options, run, fails_after_a_block, exported, bundle_copy, tree
):
    done = run("export", *options, "-o", bundle_copy, "--force")
    assert done.exit_code == 1
    assert names(bundle_copy.parent) == [bundle_copy.name]
    assert tree(bundle_copy) == tree(exported.bundle.path)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--context", "9"), "context 9 is too short: one image and the chat format take"),
        (("--context", "100000"), "context 100000 is more than the model's 8192 positions"),
        (("--tokens", "65"), "divprune: got tokens=65, expected 1 to 64"),
        (("--tokens", "0"), "tokens must be at least 1, got 0"),
        (("--target", "onx"), "unknown target 'onx'; did you mean 'onnx'? known: coreml, exec"),
        (("--method", "divprun"), "unknown method 'divprun'; did you mean 'divprune'?"),
        (("--method", "tome@decoder"), "method 'tome' works at site 'tokens' and 'vision', not"),
        (("--method", "tome:rr=1"), "method 'tome' has no option 'rr'; available:"),
        (("--quantize", "p4"), "target 'onnx' does not support scheme 'p4'; available: none"),
        (("--tiles", "2"), "tiles must look like ROWSxCOLUMNS, for example 2x2, got '2'"),
        (("--block-size", "big"), "a size looks like 64MB or 1.5GB, got 'big'"),
        (("no/such/model",), "no model 'no/such/model': expected a folder, a hub id like"),
    ],
)
def test_a_wrong_request_is_one_line(run, tiny_model, tmp_path, asked, message):
    model = [tiny_model] if asked[0].startswith("--") else []
    done = run("export", *model, *asked, "-o", tmp_path / "b.edgevlm")
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert line.startswith("edgevlm: ")
    assert message in line
    assert done.stdout == ""
    assert names(tmp_path) == []


def test_the_place_of_the_output(options, run, bundle_copy, tmp_path):
    before = names(tmp_path)
    for place, more, message in (
        (bundle_copy, (), "exists; choose another output or give --force to replace it"),
        (tmp_path, ("--force",), "is not a bundle; --force replaces only bundles"),
        (tmp_path / "no" / "b", (), "does not exist; create it"),
        (tmp_path / ("x" * 300), (), "File name too long"),
    ):
        done = run("export", *options, "-o", place, *more)
        assert done.exit_code == 1
        assert message in done.stderr.splitlines()[-1]
        assert names(tmp_path) == before


def test_two_exports_to_one_place(options, run, exported, tmp_path):
    out = tmp_path / "b.edgevlm"
    with contextlib.suppress(KeyboardInterrupt), writing(out, exported.bundle.plan, "", False):
        done = run("export", *options, "-o", out)
        raise KeyboardInterrupt
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == f"edgevlm: another export is writing '{out}'"


def test_a_folder_that_cannot_be_written(options, run, tmp_path):
    pytest.importorskip("torch")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    try:
        (folder / "probe").touch()
    except OSError:
        pass
    else:
        pytest.skip("this user writes into read-only folders")
    done = run("export", *options, "-o", folder / "b.edgevlm")
    assert done.exit_code == 1
    assert "Permission denied" in done.stderr.splitlines()[-1]


@pytest.fixture
def files_up_to():
    """A limit on the size of a file, in bytes, which stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line(options, run, files_up_to, tmp_path):
    files_up_to(150_000)  # the embedding table has 262 kB
    done = run("export", *options, "-o", tmp_path / "b.edgevlm")
    assert done.exit_code == 1
    expected = f"edgevlm: '{tmp_path / 'b.edgevlm'}' was not written: File too large"
    assert done.stderr.splitlines()[-1] == expected
    assert names(tmp_path) == []


def test_a_full_disk_in_the_middle_keeps_the_old_bundle(
    exported, tiny_model, run, files_up_to, bundle_copy, tree
):
    shutil.rmtree(bundle_copy / "measured")
    before = tree(bundle_copy)
    files_up_to(270_000)  # one block of the vision encoder has more
    done = run("export", tiny_model, "--tokens", "16", "-o", bundle_copy, "--force")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("edgevlm: ")
    assert "File too large" in done.stderr.splitlines()[-1]
    assert names(bundle_copy.parent) == [bundle_copy.name]
    assert tree(bundle_copy) == before


def test_dry_run_prints_the_plan_and_writes_nothing(options, run, tmp_path):
    pytest.importorskip("torch")
    done = run("export", *options, "-o", tmp_path / "b.edgevlm", "--dry-run", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["visual_tokens"] == 16
    assert names(tmp_path) == []
