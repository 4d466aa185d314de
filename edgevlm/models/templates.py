"""Chat templates are programs of whoever made a checkpoint; here they run within limits.

transformers runs them in Jinja's sandbox. It lets them reach nothing outside, but take any time and
memory. A template of a chat model runs a hundred lines for a chat of three turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from edgevlm.errors import ModelError
from edgevlm.libraries import first_line

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

LONGEST, MOST_LINES, ROOM_BYTES = 10**6, 10**6, 512 * 2**20
RANDOM = ("lipsum", "random")  # a function and a filter; the first takes any time, too
COMPILED = "<template>"  # the file that Jinja's code says it is from


def check(template: str) -> None:
    """Refuse a template that is no chat's: one step of it could take hours.

    Raises:
        ModelError: If it is longer than a million letters, nested too deeply, writes random
            text, or multiplies what only it knows.
    """
    # Imported here: transformers brings it, and only plans need it.
    from jinja2 import Environment, TemplateError, nodes

    if len(template) > LONGEST:
        raise ModelError(f"the chat template has {len(template):,} letters, {LONGEST:,} at most")
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
            template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        )
        products = [*parsed.find_all(nodes.Pow), *parsed.find_all(nodes.Mul)]
        named: list[Any] = [*parsed.find_all(nodes.Name), *parsed.find_all(nodes.Filter)]
    except TemplateError:
        return  # transformers, which has tags of its own, says what is wrong
    except RecursionError:
        raise ModelError("the chat template is nested too deeply") from None
    for node in named:
        if node.name in RANDOM:
            raise ModelError(
                f"line {node.lineno} of the chat template writes random text ({node.name}), and"
                " prompts are fixed; put a text into it"
            )
    for made in products:
        constant = isinstance(made.left, nodes.Const) or isinstance(made.right, nodes.Const)
        if isinstance(made, nodes.Pow) or not constant:
            raise ModelError(
                f"line {made.lineno} of the chat template raises to a power or multiplies two"
                " unknown numbers, which can take hours; write the number"
            )


@contextmanager
def limited() -> Iterator[None]:
    """A million lines of templates, and on Linux half a gigabyte, for what runs inside.

    Raises:
        ModelError: If what runs inside takes more, or raises any other error.
    """
    before, lines = sys.gettrace(), 0

    def count(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        nonlocal lines
        lines += event == "line"
        if lines > MOST_LINES:
            raise ModelError(f"the chat template runs more than {MOST_LINES:,} lines")
        return count

    def called(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        return count if frame.f_code.co_filename == COMPILED else None

    with _room():
        sys.settrace(called)
        try:
            yield
        except ModelError:
            raise
        except MemoryError:
            sys.settrace(before)
            room = f"{ROOM_BYTES // 2**20} MB"
            raise ModelError(f"the chat template takes more than {room} of memory") from None
        except Exception as cause:
            reason = first_line(cause)
            raise ModelError(f"the chat template does not render: {reason}") from cause
        finally:
            sys.settrace(before)


@contextmanager
def _room() -> Iterator[None]:
    """No more memory than this process has now and `ROOM_BYTES`."""
    try:
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
    except OSError:  # no Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + ROOM_BYTES
    least = min(limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
