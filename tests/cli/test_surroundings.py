"""Odd surroundings: closed streams, no home, two first runs, pipes, arguments without end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevlm.bundle import cache
from edgevlm.bundle.cache import cache_folder
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.libraries import muted

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "from edgevlm.cli import main; main()"
HOMELESS = """
import os, pwd
for name in ("HOME", "USER", "LOGNAME"):
    os.environ.pop(name, None)
def unknown(user):
    raise KeyError(f"getpwuid(): uid not found: {user}")
pwd.getpwuid = unknown
"""


def shell(line, *arguments, before=""):
    """Run the command in a shell, with redirections that Python cannot ask for."""
    words = [sys.executable, "-P", "-c", f"{before}\n{COMMAND}", *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {line}', "sh", *words], capture_output=True, text=True,
        timeout=100, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


ASK = ("--prompt", "Hi", "--max-new-tokens", "2")


@pytest.mark.parametrize("line", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_without_stderr_stdout_is_the_document_alone(exported, line):
    done = shell(line, "run", exported.bundle.path, *ASK, "--json")
    assert done.returncode == 0
    (document,) = done.stdout.splitlines()
    assert json.loads(document)["token_ids"]


def test_an_error_without_stderr_is_an_exit_code(tmp_path):
    done = shell("2>&-", "run", tmp_path / "no", *ASK)
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("more", [(), ASK])
def test_a_chat_without_stdin_ends(exported, more):
    done = shell("<&-", "run", exported.bundle.path, "--chat", *more)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == len(more) // len(ASK)


def test_a_library_cannot_write_into_the_next_file(tmp_path):
    # A file that is opened without a standard error would be number 2, where C libraries write.
    code = "import sys, os; from edgevlm import cli; cli._open_streams();"
    code += f" file = open({str(tmp_path / 'weights')!r}, 'w'); os.write(2, b'a warning')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    assert subprocess.run(words, env=environment).returncode == 0
    assert (tmp_path / "weights").read_bytes() == b""


def test_a_user_without_a_home(exported, tmp_path):
    environment = (
        f"import os; os.environ.pop('XDG_CACHE_HOME'); os.environ['TMPDIR'] = {str(tmp_path)!r}"
    )
    for arguments in (("run", exported.bundle.path, *ASK), ("devices",), ("cache", "--json")):
        done = shell("", *arguments, before=environment + HOMELESS)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    folder = tmp_path / f"edgevlm-{os.getuid()}"
    assert json.loads(done.stdout)["folder"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "onnxruntime").is_dir()


def test_the_temporary_cache_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"edgevlm-{os.getuid()}"
    assert cache_folder() == folder
    folder.chmod(0o777)
    with pytest.raises(InputError, match=r"set XDG_CACHE_HOME to a folder$"):
        cache_folder()
    cache.keep("a", "text")  # a cache only costs time
    assert cache._remembered() == {}
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(InputError, match="cannot be used"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(os.path, "expanduser", lambda path: "/home/me")
    assert cache_folder() == Path("/home/me/.cache/edgevlm")


WAIT = """
import sys
from edgevlm.bundle.cache import alone
with alone("embedded", lambda: print("waiting", flush=True)):
    print("inside", flush=True)
    sys.stdin.readline()
"""


def test_the_second_of_two_first_runs_waits():
    pytest.importorskip("fcntl")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first, second = (
        subprocess.Popen([sys.executable, "-c", WAIT], stdin=subprocess.PIPE, text=True,
                         stdout=subprocess.PIPE, env=environment) for _ in range(2)
    )  # fmt: skip
    lines = [process.stdout.readline() for process in (first, second)]
    assert sorted(lines) == ["inside\n", "waiting\n"]
    if lines[0] == "waiting\n":
        first, second = second, first
    time.sleep(0.2)
    assert second.poll() is None
    first.communicate("\n")
    assert second.stdout.readline() == "inside\n"
    second.communicate("\n")


def test_the_default_bundle_is_exported_once_and_again_if_damaged(monkeypatch, exported, tmp_path):
    from edgevlm.cli.shared import default_bundle as module

    made = []

    def export(path):
        made.append(path)
        os.makedirs(path.parent, exist_ok=True)
        module.shutil.rmtree(path, ignore_errors=True)
        module.shutil.copytree(exported.bundle.path, path)

    monkeypatch.setattr(module, "_export", export)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = module.default_bundle()
    assert module.default_bundle() == path
    assert len(made) == 1
    for damage in (lambda: (path / "manifest.json").unlink(),
                   lambda: os.truncate(path / "tokenizer.json", 5)):  # fmt: skip
        damage()
        assert module.default_bundle() == path
    assert len(made) == 3


@pytest.mark.parametrize("name", ["profile", "dataset", "image", "checkpoint", "weights", "bundle"])
def test_a_pipe_without_a_writer_is_refused(run, exported, tmp_path, name):
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "weights" / "model.safetensors")
    bundle = exported.bundle.path
    commands = {
        "profile": ("compare", pipe, pipe),
        "dataset": ("evaluate", bundle, "--dataset", pipe.rename(tmp_path / "q.jsonl")
                    if name == "dataset" else ""),
        "image": ("run", bundle, *ASK, "--image", pipe),
        "checkpoint": ("plan", tmp_path),
        "weights": ("plan", tmp_path / "weights"),
        "bundle": ("run", pipe, *ASK),
    }  # fmt: skip
    done = run(*commands[name])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("edgevlm: ")


LONG = "a" * 100_000


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", LONG, *ASK), ("plan", LONG), ("plan", "embedded", "--method", LONG), (LONG,),
        ("run", "b", "--threads", LONG), ("plan", "embedded", "--quantize", LONG),
        ("run", "b", LONG, LONG), ("compare", LONG, LONG), ("inspect", f"{LONG}\x1b[31m"),
    ],
)  # fmt: skip
def test_a_long_argument_is_cut_in_the_error(run, arguments):
    done = run(*arguments)
    assert done.exit_code in (1, 2)
    assert len(done.stderr) < 2000
    assert "\x1b" not in done.stderr


def test_the_end_of_a_long_error_stays():
    error = EdgeVLMError(f"no model '{LONG}': expected a folder")
    assert len(str(error)) == 1000
    assert str(error).startswith("no model 'aaa")
    assert str(error).endswith("aaa': expected a folder")
    assert str(EdgeVLMError("short")) == "short"


def test_a_manifest_of_many_values_is_refused_before_it_is_parsed(bundle_copy, run):
    import resource

    (bundle_copy / "manifest.json").write_text("[" + "{}," * 10_000_000 + "{}]")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = run("inspect", bundle_copy)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert done.stderr == "edgevlm: manifest.json has more than 1,000,000 values\n"
    assert taken * 1024 < 150 * 10**6


def test_libtiff_says_nothing_itself(tmp_path, capfd):
    from PIL import Image

    from edgevlm.runtimes.loops import images

    data = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(data, "TIFF", compression="tiff_lzw")
    damaged = bytearray(data.getvalue())
    damaged[8:60] = b"\xff" * 52
    with pytest.raises(InputError, match="cannot be read as an image"):
        images.load(bytes(damaged))
    assert capfd.readouterr().err == ""
    os.write(2, b"later")
    assert capfd.readouterr().err == "later"


def test_bodies_of_several_threads_restore_standard_error(capfd):
    first, second = muted(), muted()
    first.__enter__()
    second.__enter__()
    os.write(2, b"no")
    first.__exit__(None, None, None)
    os.write(2, b"no")
    second.__exit__(None, None, None)
    os.write(2, b"yes")
    assert capfd.readouterr().err == "yes"
