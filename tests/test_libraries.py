"""What is said of other people's libraries, and how they are left."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgevlm.errors import InputError, RuntimeLoadError
from edgevlm.libraries import (
    first_line,
    objects_set_aside,
    program,
    python_command,
    replaced,
    require,
)

HUB_404 = """404 Client Error. (Request ID: Root=1-66b0;b2)

Repository Not Found for url: https://huggingface.co/api/models/a/b/revision/main.
Please make sure you specified the correct `repo_id` and `repo_type`.
If you are trying to access a private or gated repo, make sure you are authenticated."""
HUB_GATED = """403 Client Error. (Request ID: Root=1-66b0;b2)

Cannot access gated repo for url https://huggingface.co/a/b/resolve/main/config.json.
Access to model a/b is restricted and you are not in the authorized list."""
STATE = """Error(s) in loading state_dict for Linear:
\tsize mismatch for weight: copying a param with shape torch.Size([2, 3]) from checkpoint"""
INSIDE = """Failed to convert.

Traceback (most recent call last):
  File "/lib/a.py", line 1, in call
    run(x)
    ^^^^^^
ValueError: 'sizes' has 3 values
"""
CHECK = """expected scalar type Float but found Half
Exception raised from check at /pytorch/a.cpp:12 (most recent call first):
frame #0: c10::Error::Error(...) + 0x99 (0x7f in libc10.so)"""
KERNEL = """

=====
[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Gather
Stacktrace:
"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one", "one"),
        ("\n one\ntwo", "one"),
        ("", "ValueError"),
        (" \n ", "ValueError"),
        (HUB_404, "Repository Not Found for url: https://huggingface.co/api/models/a/b/revision/main."),
        (HUB_GATED, "Cannot access gated repo for url"
         " https://huggingface.co/a/b/resolve/main/config.json."),
        ("500 Server Error: Broken for url: https://x", "500 Server Error: Broken for url: https://x"),
        (STATE, "Error(s) in loading state_dict for Linear: size mismatch for weight: copying a"
         " param with shape torch.Size([2, 3]) from checkpoint"),
        (INSIDE, "ValueError: 'sizes' has 3 values"),
        (CHECK, "expected scalar type Float but found Half"),
        (KERNEL, "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while"
         " running Gather"),
        ("Error:\n\n  the file is cut", "the file is cut"),
        ("Please wait", "Please wait"),
        ("Failed with:", "Failed with:"),
        ("x" * 1000, "x" * 399 + "…"),
    ],
)  # fmt: skip
def test_the_line_of_an_error_that_says_something(message, line):
    assert first_line(ValueError(message)) == line


def test_an_error_with_half_a_message_says_its_type():
    assert first_line(KeyError("kv")) == "KeyError: 'kv'"
    assert (
        first_line(IndexError("tuple index out of range")) == "IndexError: tuple index out of range"
    )
    assert first_line(AssertionError()) == "AssertionError"
    assert first_line(MemoryError()) == "there is not enough memory"


def test_a_missing_library_names_its_extra():
    wanted = "a step needs Thing; pip install 'edgevlm[video]'"
    for kind in (RuntimeLoadError, InputError):
        with pytest.raises(kind, match=f"^{re.escape(wanted)}$") as error:
            require("a step", "Thing", "no_such_module", "video", kind)
        assert isinstance(error.value.__cause__, ImportError)
    assert require("a step", "json", "json", "video").loads("1") == 1


def test_a_replaced_attribute_is_back_after_an_error_too():
    class Library:
        @staticmethod
        def rule(x):
            return x

    before = vars(Library)["rule"]
    other = staticmethod(lambda x: -x)
    with replaced(Library, "rule", other):
        assert Library.rule(1) == -1
    assert vars(Library)["rule"] is before
    with pytest.raises(ZeroDivisionError), replaced(Library, "rule", other):
        _ = 1 / 0
    assert vars(Library)["rule"] is before
    owner = SimpleNamespace(value=1)
    with replaced(owner, "value", 2):
        assert owner.value == 2
    assert owner.value == 1


HOSTILE = ("numpy", "onnxruntime", "edgevlm", "json", "google", "tokenizers", "PIL", "random")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The current folder is one with modules and programs that leave a file if they are run."""
    trace = tmp_path / "trace"
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write('{name} ')\n")
    for name in ("adb", "ssh", "xcrun", "uname"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {trace}\n")
        (folder / name).chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    return trace


def test_a_child_process_runs_no_code_of_the_current_folder(hostile):
    command = python_command("edgevlm.profiling.machine.bandwidth", "1")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
    assert not hostile.exists()


def test_a_child_process_imports_the_package_of_its_parent(hostile, tmp_path):
    (tmp_path / "child.py").write_text("")
    code = "from edgevlm.libraries import python_command; import json, edgevlm;"
    code += " print(json.dumps([edgevlm.__file__, python_command('edgevlm.version')]))"
    here = os.environ["PYTHONPATH"]
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    file, command = json.loads(done.stdout)
    assert file == f"{here}/edgevlm/__init__.py"
    assert command[1] == "-P"
    assert command[4] == here
    with pytest.MonkeyPatch.context() as patch:  # as where the parent found it by its own means
        patch.delenv("PYTHONPATH")
        asked = [*command[:3], command[3].replace(".main()", ".VERSION; print(edgevlm.__file__)")]
        done = subprocess.run([*asked, *command[4:]], capture_output=True, text=True)
    assert done.stdout.strip() == file


@pytest.mark.parametrize("path", ["{0}::{1}", ".:{0}:{1}", "downloads:{0}:{1}"])
def test_no_program_of_the_current_folder_is_started(hostile, tmp_path, monkeypatch, path):
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", path.format(folder, "/nowhere"))
    assert program("adb") is None
    (folder / "adb").write_text("#!/bin/sh\n")
    assert program("adb") is None  # it cannot be executed
    (folder / "adb").chmod(0o755)
    assert program("adb") == str(folder / "adb")


def test_the_name_of_the_processor_starts_no_program(hostile, monkeypatch):
    from edgevlm import libraries

    monkeypatch.setenv("PATH", f":{os.environ['PATH']}")
    monkeypatch.setattr(libraries, "processor_lines", tuple)
    assert libraries.processor_name()
    assert not hostile.exists()


def test_a_command_leaves_out_what_only_training_needs(monkeypatch):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from edgevlm import libraries

    owners = (transformers.utils, transformers.utils.import_utils)
    pairs = [(owner, name) for owner in owners for name in libraries._FOR_TRAINING]
    for owner, name in pairs:
        monkeypatch.setattr(owner, name, lambda: True)
    libraries.require_torch()
    assert all(getattr(*pair)() for pair in pairs)  # whoever imports us may train
    with libraries.process_alone():
        libraries.require_torch()
    assert not any(getattr(*pair)() for pair in pairs)


def test_what_is_alive_is_set_aside_inside_alone(monkeypatch):
    monkeypatch.setattr("edgevlm.libraries._ASIDE", [])
    gc.unfreeze()  # by a fixture of all tests
    try:
        with objects_set_aside():
            assert gc.get_freeze_count() > 10_000
            with objects_set_aside():
                pass
            assert gc.get_freeze_count() > 10_000  # it was not the inner one's
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()
