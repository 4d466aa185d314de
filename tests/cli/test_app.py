"""What all commands share: help, exit codes, one-line errors, what goes to stdout."""

from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import edgevlm
from edgevlm.cli import COMMANDS, main
from edgevlm.cli.shared import output

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_help(run, name):
    done = run(name, "--help")
    assert done.exit_code == 0
    assert f" {name} [OPTIONS]" in done.stdout
    assert "--json" in done.stdout
    assert done.stderr == ""


def test_help_lists_every_command(run):
    text = run("--help").stdout
    assert all(f" {name} " in text for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprot"], "No such command 'exprot'"),
        (["export"], "Missing option '--output'"),
        (["inspect"], "Missing argument"),
        (["verify"], "Missing argument"),
        (["plan", "--tokens", "many"], "Invalid value for '--tokens'"),
        (["plan", "--colour"], "No such option: --colour"),
        (["run", "x"], "no input; give --prompt TEXT, or --chat to type questions"),
        (["run", "x", "--prompt", "?", "--image", "a", "--video", "b"], "not both"),
        (["run", "x", "--prompt", "?", "--max-new-tokens", "0"], "Invalid value for"),
        (["run", "x", "--prompt", "?", "--threads", "-1"], "Invalid value for '--threads'"),
        (["run", "x", "--prompt", "?", "--seed", "-1"], "Invalid value for '--seed'"),
        (["run", "x", "--prompt", "?", "--temperature", "nan"], "Invalid value for"),
        (["run", "x", "--prompt", "?", "--top-p", "2"], "Invalid value for '--top-p'"),
        (["run", "x", "--prompt", "?", "--fps", "2"], "--fps needs --stream"),
        (["run", "x", "--prompt", "?", "--pace"], "--pace needs --stream"),
        (["run", "x", "--stream", "--prompt", "?"], "--stream needs --video"),
        (["run", "x", "--stream", "--video", "a", "--image", "b"], "not both"),
        (["run", "x", "--stream", "--video", "a", "--draft", "lookup"], "--draft does not go"),
        (["run", "x", "--stream", "--video", "-", "--chat"], "stdin, which is the video"),
        (["run", "x", "--stream", "--video", "a", "--ask-every", "2"], "needs --prompt"),
    ],
)
def test_wrong_usage_exits_with_2(run, arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["inspect", "run", "verify"])
def test_a_bundle_that_is_not_there(run, tmp_path, name):
    if name == "verify":
        pytest.importorskip("torch")
    done = run(name, tmp_path / "no.edgevlm", *(["--prompt", "?"] if name == "run" else []))
    assert done.exit_code == 1
    expected = (
        f"no bundle at '{tmp_path / 'no.edgevlm'}': expected a folder written by `edgevlm export`"
    )
    assert done.stderr == f"edgevlm: {expected}\n"
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["inspect", "run", "verify"])
def test_a_damaged_bundle_is_one_line(run, edited, name):
    path = edited(lambda document: document["host"].update({"chnk\x1b[2J": 1}))
    done = run(name, path, *(["--prompt", "?"] if name == "run" else []))
    assert done.exit_code == 1
    expected = r"manifest.json.host has an unknown key 'chnk\x1b[2J'; did you mean 'chunk'?"
    assert done.stderr == f"edgevlm: {expected}\n"


def test_an_error_steers_no_terminal_and_is_one_line(run, tmp_path):
    done = run("inspect", tmp_path / "a\nb\x1b[31mc")
    assert done.stderr == (
        f"edgevlm: no bundle at '{tmp_path}/a b?[31mc': expected a folder written by"
        " `edgevlm export`\n"
    )


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    from typer.testing import CliRunner

    from edgevlm.cli import app, inspect

    def broken(path):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(inspect.Bundle, "open", broken)
    result = CliRunner().invoke(app, ["inspect", "x"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is not enough memory for this"),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied: '/x'"),
        (OSError("odd"), "odd"),
        (KeyboardInterrupt(), "stopped; no output is incomplete, and the same command continues"),
        (ModuleNotFoundError("no", name="num2words.lang"), "'num2words' is not "
         "installed; pip install 'edgevlm[all]'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_limits_of_the_machine_are_one_line(run, monkeypatch, error, message):
    from edgevlm.cli import inspect

    def fail(path):
        raise error

    monkeypatch.setattr(inspect.Bundle, "open", fail)
    done = run("inspect", "x")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"edgevlm: {message}")
    assert done.stderr.count("\n") == 1


BLOCKED = "sys.modules.update(dict.fromkeys({!r}))"
ONNX = "; pip install 'edgevlm[onnx]'"
TORCH = f"; None in sys.modules){ONNX}"
ENGINE = "engine 'onnxruntime' needs onnxruntime; pip install 'edgevlm[onnxruntime]'"


@pytest.mark.parametrize(
    ("arguments", "missing", "message"),
    [
        (["plan"], ["torch"], "needs PyTorch and transformers (import of torch halted" + TORCH),
        (["export", "-o", "OUT"], ["transformers"], "(import of transformers halted" + TORCH),
        (["methods"], ["torch"], TORCH),
        (["run", "BUNDLE", "--prompt", "?"], ["onnxruntime", "torch"],
         "no engine here runs target 'onnx'; " + ENGINE),
        (["run", "BUNDLE", "--prompt", "?", "--engine", "onnxruntime"], ["onnxruntime"], ENGINE),
        (["run", "--prompt", "?"], ["torch"], TORCH),
    ],
    ids=["plan", "export", "methods", "engine", "named engine", "default bundle"],
)  # fmt: skip
def test_a_missing_extra_is_named(
    request, command, tmp_path, monkeypatch, arguments, missing, message
):
    if "BUNDLE" in arguments:
        path = request.getfixturevalue("exported").bundle.path
        arguments = [str(path) if a == "BUNDLE" else a for a in arguments]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = [str(tmp_path / "out") if a == "OUT" else a for a in arguments]
    done = command(*arguments, before=BLOCKED.format(missing))
    assert done.code == 1
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("edgevlm: ")
    assert line.endswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_of_a_target_is_named(run, tiny_model, monkeypatch):
    from edgevlm import exporters
    from edgevlm.exporters import to_onnx

    monkeypatch.setattr(exporters, "to_onnx", to_onnx)  # as it is set anew by an import
    for name in [name for name in sys.modules if name.startswith(to_onnx.__name__)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    done = run("plan", tiny_model)
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("edgevlm: ")
    assert line.endswith("target 'onnx' needs 'onnx_ir'" + ONNX)


def test_engines_says_what_is_missing(command):
    done = command("engines", "--json", before=BLOCKED.format(["onnxruntime", "torch"]))
    assert done.code == 0
    (engine,) = [e for e in json.loads(done.out) if e["name"] == "onnxruntime"]
    assert not engine["available"]
    expected = "engine 'onnxruntime' needs onnxruntime; pip install 'edgevlm[onnxruntime]'"
    assert engine["reason"] == expected


def test_nothing_heavy_is_imported_at_start(command):
    after = (
        "import atexit\n"
        "heavy = ('torch', 'transformers', 'onnx', 'onnxruntime')\n"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules], file=sys.stderr))"
    )
    assert command("--help", before=after).err == "[]\n"


def test_versions_come_without_imports(command):
    after = (
        "import atexit\n"
        "heavy = ('torch', 'transformers', 'onnx', 'onnxruntime', 'coremltools')\n"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules], file=sys.stderr))"
    )
    done = command("--version", before=after)
    assert (done.code, done.err) == (0, "[]\n")
    lines = done.out.splitlines()
    assert lines[0] == f"edgevlm {edgevlm.__version__}"
    versions = dict(line.split(" ", 1) for line in lines)
    assert versions["python"] == platform.python_version()
    for library in ("onnxruntime", "executorch", "torch", "transformers"):
        try:
            assert versions[library] == metadata.version(library)
        except metadata.PackageNotFoundError:
            assert versions[library] == "not installed"


def test_versions_of_what_is_not_installed(monkeypatch):
    from edgevlm.cli.shared import versions

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions.metadata, "version", missing)
    assert "torch not installed" in versions.lines()
    monkeypatch.setattr(versions.metadata, "requires", missing)
    assert "onnxruntime not installed" in versions.lines()


def test_a_reader_that_goes_away_is_no_error(exported):
    # As in `edgevlm inspect B | true`.
    done = subprocess.run(
        f"'{sys.executable}' -c 'from edgevlm.cli import main; main()' inspect"
        f" '{exported.bundle.path}' --json | true",
        shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_output_that_the_terminal_cannot_show(tiny_model, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["edgevlm", "plan", tiny_model, "--tiles", "2x2"])
    with pytest.raises(SystemExit) as ended:
        main()
    stdout.flush()
    assert ended.value.code == 0
    assert b"visual tokens: 5 views" in stdout.buffer.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_keeps_every_letter_in_any_encoding(monkeypatch, encoding):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    monkeypatch.setattr(sys, "stdout", stdout)
    output.answer({"text": "é 日本 🙂"}, "", as_json=True)
    printed = stdout.buffer.getvalue().decode(encoding)
    assert json.loads(printed) == {"text": "é 日本 🙂"}
    assert ("日本" in printed) == (encoding == "utf-8")
