"""Optional libraries and other programs: clear errors, log lines, temporary patches, commands.

No command here lets the current folder run code: it may be a bundle or a folder of downloads.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError, RuntimeLoadError

# Imports this very package, wherever it lies, and calls `main` of one of its modules.
_CHILD = (
    "import sys; tree, name = sys.argv[1:3]; del sys.argv[1:3]; import importlib.util, pathlib;"
    " sys.path.insert(0, tree); import edgevlm; del sys.path[0];"
    " importlib.import_module(name).main()"
)


@contextmanager
def silent() -> Iterator[None]:
    """Silence log lines and warnings inside the body."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a library's class or module inside the body."""
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def first_line(cause: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)


def needs(what: str, library: str, extra: str) -> str:
    """One line for a step whose library is missing, with the extra to install.

    Args:
        what: Step or plug-in, as the subject of a sentence.
        library: The missing library.
        extra: Name of the extra in pyproject.toml.
    """
    return f"{what} needs {library}; pip install 'edgevlm[{extra}]'"


def require(
    what: str, library: str, module: str, extra: str, kind: type[EdgeVLMError] = RuntimeLoadError
) -> Any:
    """Import an optional library.

    Raises:
        EdgeVLMError: One of `kind` if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise kind(needs(what, library, extra)) from cause


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that calls `main` of a module of ours in a process of its own.

    `-P` keeps the current folder out of the modules that it can import; `-m` alone would put it
    first. Paths in `arguments` should be absolute.
    """
    tree = str(Path(__file__).resolve().parents[1])
    return [sys.executable, "-P", "-c", _CHILD, tree, module, *arguments]


def program(name: str) -> str | None:
    """Absolute path of a program; None if no folder of PATH has it.

    Only absolute folders count: an empty one or `.` is the current folder, which Windows searches
    even where PATH does not have it.
    """
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if os.path.isabs(folder) and (found := shutil.which(os.path.join(folder, name))):
            return found
    return None


def require_torch() -> None:
    """Check for PyTorch and transformers before a step that needs them.

    Raises:
        RuntimeLoadError: If torch or transformers is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as cause:
        both = f"PyTorch and transformers ({cause})"
        raise RuntimeLoadError(needs("this step", both, "onnx")) from cause
    del torch, transformers


@cache
def processor_lines() -> tuple[str, ...]:
    """Lines of Linux's /proc/cpuinfo; none on other systems."""
    try:
        return tuple(Path("/proc/cpuinfo").read_text("utf-8").splitlines())
    except OSError:
        return ()


def processor_name() -> str:
    """Name of the processor, else of the board, else the processor's architecture."""
    names = [x.partition(":")[2].strip() for x in processor_lines() if x.startswith("model name")]
    if not names:
        with suppress(OSError):  # ARM boards have a name, their processors have none
            names = [Path("/proc/device-tree/model").read_text("utf-8").strip("\0\n")]
    # Not `platform.processor`, which starts a program.
    return next(iter(names), os.environ.get("PROCESSOR_IDENTIFIER") or platform.machine())
