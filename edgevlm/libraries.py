"""Optional libraries and other programs: clear errors, log lines, temporary patches, commands.

No command here lets the current folder run code: it may be a bundle or a folder of downloads.
"""

from __future__ import annotations

import gc
import importlib
import logging
import math
import os
import platform
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError, RuntimeLoadError

_log = logging.getLogger(__name__)

LONGEST = 400  # characters of another library's line
# Lines that say nothing about the cause: HTTP errors begin with a request number, errors of C++
# libraries name places in their own sources.
_EMPTY_LINE = re.compile(
    r"""\d{3}\ (Client|Server)\ Error[.:]?\ *(\(Request\ ID[^)]*\))?$
    | \(Request\ ID | File\ " | \^+$ | [-=#*~]+$ | Stack\ ?trace: | C\+\+\ (stack|Call)
    | frame\ \#\d+ | \#\d+\ 0x | Exception\ raised\ from | from\ user\ code:
    | (Error|Exception|Details?|Reason|Message|Summary):?$
    | For\ (more|further)\ (information|details) | Please\ | You\ can\ (suppress|set)
    | If\ (this\ is|you\ are)\ | Set\ TORCH | (The\ above|During\ handling\ of\ the\ above) """,
    re.VERBOSE | re.IGNORECASE,
)
_RAISED = re.compile(r"[\w.]*(Error|Exception|Interrupt|Warning)\b")  # `RuntimeError: why`
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
def uncollected() -> Iterator[None]:
    """Leave cycles of objects uncollected inside the body.

    While torch and transformers are imported, Python would look for cycles among all their objects
    again and again: a fifth of the time of a plan. What is made inside is not searched afterwards
    either, so this is for a process that ends soon.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def muted() -> Iterator[None]:
    """Send what libraries write to the process's standard error itself nowhere, inside the body.

    Other threads of the process are silent meanwhile; the last of several bodies restores it.
    """
    with _MUTED:
        if not _MUTED_BODIES:
            _SAVED.append(_away())
        _MUTED_BODIES.append(None)
    try:
        yield
    finally:
        with _MUTED:
            _MUTED_BODIES.pop()
            if not _MUTED_BODIES and (saved := _SAVED.pop()) is not None:
                os.dup2(saved, 2)
                os.close(saved)


def _away() -> int | None:
    """Point standard error at nothing; the descriptor to restore, None if there is none."""
    with suppress(OSError, ValueError, AttributeError):  # none, or a closed one
        sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:
        return None
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    return saved


# Bodies of `muted` that run now, of all threads, and the descriptor that the first one saved.
_MUTED, _MUTED_BODIES, _SAVED = threading.Lock(), list[None](), list[int | None]()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace, or add, an attribute of a library's class or module inside the body."""
    had, before = name in owner.__dict__, owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before) if had else delattr(owner, name)


_ASIDE = list[None]()  # bodies of `objects_set_aside` that run now


@contextmanager
def objects_set_aside() -> Iterator[None]:
    """Inside, Python's garbage collector searches only what is made there.

    An export makes millions of objects, so that each of many collections would go through all of
    torch's, which stay. Where objects are set aside already, by who calls us, nothing is changed.
    """
    if _ASIDE or gc.get_freeze_count():  # which is slow: it counts them one by one
        yield
        return
    _ASIDE.append(None)
    gc.freeze()
    try:
        yield
    finally:
        _ASIDE.pop()
        gc.unfreeze()


def first_line(cause: BaseException) -> str:
    """The first line of an error's message that says something, of at most `LONGEST` characters.

    Left out are request numbers, headings of tracebacks, source lines and advice; a heading that
    ends in a colon is joined with what it announces. Of a traceback inside a message its last line
    counts. An error without a message gives the name of its type, and a missing key both.
    """
    if isinstance(cause, MemoryError):
        return "there is not enough memory"
    lines = [" ".join(line.split()) for line in str(cause).splitlines() if line.strip()]
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        lines = [line for line in lines if _RAISED.match(line)][-1:] or lines
    telling = [line for line in lines if not _EMPTY_LINE.match(line)] or lines
    line = telling[0] if telling else ""
    if line.endswith(":"):
        line = " ".join(telling[:2])
    if not line or isinstance(cause, LookupError | AssertionError):
        line = f"{type(cause).__name__}: {line}".removesuffix(": ")
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


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
    """Check for PyTorch and transformers before a step that needs them; bounds PyTorch's threads.

    Raises:
        RuntimeLoadError: If torch or transformers is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as cause:
        both = f"PyTorch and transformers ({cause})"
        raise RuntimeLoadError(needs("this step", both, "onnx")) from cause
    if torch.get_num_threads() > processors():
        torch.set_num_threads(processors())  # PyTorch does not see a quota
    if _ALONE.get():
        from transformers.utils import import_utils

        for name in _FOR_TRAINING:
            for owner in (import_utils, transformers.utils):
                setattr(owner, name, _absent)


@contextmanager
def process_alone() -> Iterator[None]:
    """Inside the body this process is that of a command, and transformers ours alone.

    `require_torch` then keeps transformers from importing SciPy, for losses of detectors, and
    torch's distributed tensors: a seventh of the time of a plan.
    """
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def _absent() -> bool:
    return False


_ALONE = ContextVar("alone", default=False)
_FOR_TRAINING = ("is_scipy_available", "is_torch_distributed_available")


@cache
def processor_lines() -> tuple[str, ...]:
    """Lines of Linux's /proc/cpuinfo; none on other systems."""
    try:
        return tuple(Path("/proc/cpuinfo").read_text("utf-8").splitlines())
    except OSError:
        return ()


def processors() -> int:
    """Processors that this process may use: its affinity, and the CPU quota of its groups.

    A container is given a share of the machine's time by a quota, which the affinity does not show:
    more threads than that wait for each other.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    quota = _cpu_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def bounded_threads(requested: int) -> int:
    """As many threads as there are processors at most, with a log line where these are fewer.

    More would wait for each other: 64 threads on 2 processors are 25 times slower than 2.
    """
    most = processors()
    if requested > most:
        wanted = f"{requested:,}" if requested < 10**6 else "over a million"
        named = "1 processor" if most == 1 else f"{most} processors"
        _log.warning("%s threads for %s: %d used", wanted, named, most)
    return max(1, min(requested, most))


def _cpu_quota(groups: Path, root: Path) -> float | None:
    """The smallest CPU quota of the control groups of this process, in processors.

    Version 2 has one tree with `cpu.max`; in version 1 the controller `cpu` has a tree of its own
    with `cpu.cfs_quota_us`. A group's parents count too. Inside a container the path may be that of
    the host, which is not there: then the root is the container's own group.
    """
    try:
        lines = groups.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return None
    quotas = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for tree in (root, root / controllers, root / "cpu") if controllers else (root,):
            inside = Path(path.strip("/"))
            for group in (inside, *inside.parents):
                if (quota := _group_quota(tree / group)) is not None:
                    quotas.append(quota)
    return min(quotas, default=None)


def _group_quota(group: Path) -> float | None:
    """The CPU quota of one group, in processors; None if it has none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((group / name).read_text("utf-8") for name in names).split()
            quota, period = (int(word) for word in words)
        except (OSError, ValueError):  # another version, or `max 100000`
            continue
        if quota > 0 and period > 0:  # version 1 writes -1 for none
            return quota / period
    return None


def processor_name() -> str:
    """Name of the processor, else of the board, else the processor's architecture."""
    names = [x.partition(":")[2].strip() for x in processor_lines() if x.startswith("model name")]
    if not names:
        with suppress(OSError):  # ARM boards have a name, their processors have none
            names = [Path("/proc/device-tree/model").read_text("utf-8").strip("\0\n")]
    # Not `platform.processor`, which starts a program.
    return next(iter(names), os.environ.get("PROCESSOR_IDENTIFIER") or platform.machine())


def memory_bytes() -> int | None:
    """Memory of this machine, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None
