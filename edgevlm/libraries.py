"""Optional libraries: imports with a clear error, their log lines, and temporary patches."""

from __future__ import annotations

import importlib
import logging
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError, RuntimeLoadError


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
    return next(iter(names), platform.processor() or platform.machine())
