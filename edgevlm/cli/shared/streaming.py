"""`edgevlm run --stream`: the options of a stream, what it says, and questions on stdin."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Collection, Mapping
from typing import Any

import typer

from edgevlm.cli.shared.output import answer, complain, say
from edgevlm.errors import InputError
from edgevlm.profiling.machine.sensors import metered
from edgevlm.runtimes.loops.contract import Loop, RunRequest
from edgevlm.runtimes.loops.stream import Stream, StreamRequest
from edgevlm.runtimes.loops.stream.events import Event, Refused, StreamAnswer
from edgevlm.runtimes.loops.stream.source import STDIN
from edgevlm.runtimes.loops.text import TextLoop

OF_STREAMS = ("fps", "pace", "ask_every")
LINE_LIMIT = 10**5  # characters of a question on stdin
NOT_OF_STREAMS = ("image", "labels", "draft", "picker")


def check(values: Mapping[str, Any], given: Collection[str]) -> None:
    """Refuse options that belong to streams without one, and those that no stream takes."""
    if not values["stream"]:
        for name in OF_STREAMS:
            if name in given:
                raise typer.BadParameter(f"--{name.replace('_', '-')} needs --stream")
        return
    for name in NOT_OF_STREAMS:
        if name in given:
            raise typer.BadParameter(f"--{name} does not go with --stream")
    if not values["video"]:
        raise typer.BadParameter("--stream needs --video: a file, /dev/video0, an address, or -")
    if values["chat"] and values["video"] == STDIN:
        raise typer.BadParameter("--chat reads questions from stdin, which is the video; leave out")
    if values["ask_every"] is not None and values["prompt"] is None:
        raise typer.BadParameter("--ask-every needs --prompt")


def show(loop: Loop, asked: RunRequest, options: Mapping[str, Any]) -> None:
    """Print what happens: with --json each event on a line of stdout, else answers alone.

    Args:
        loop: The open bundle.
        asked: What is asked of any bundle; its questions on stdin are not read.
        options: Those of the command line, by name.
    """
    if not isinstance(loop, TextLoop):
        raise InputError(f"no stream here: {loop.usage}")
    thread = threading.Thread(target=lambda: _ask(stream), daemon=True)
    stream = Stream(loop, StreamRequest(
        options["video"], options["prompt"], options["ask_every"], options["fps"], options["pace"],
        system=asked.system, max_new_tokens=asked.max_new_tokens, sampling=asked.sampling,
        on_text=asked.on_text, sensors=metered, asking=thread.is_alive,
    ))  # fmt: skip
    before = signal.signal(signal.SIGINT, lambda *_: _stopping(stream))
    if options["chat"]:
        thread.start()
    try:
        for event in stream.events():
            _print(event, options["json"])
    finally:
        signal.signal(signal.SIGINT, before)


def _stopping(stream: Stream) -> None:
    """End a stream at the first interrupt; a second one ends the command."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stream.stop()


def _ask(stream: Stream) -> None:
    """Ask each line of stdin; one that is no text, too long, or too many is refused."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while line := sys.stdin.readline(LINE_LIMIT + 1):
        try:
            if len(line) > LINE_LIMIT:
                while line and not line.endswith("\n"):
                    line = sys.stdin.readline(LINE_LIMIT)
                raise InputError(
                    f"a line on stdin has more than {LINE_LIMIT:,} characters; ask a shorter one"
                )
            if line.strip():
                stream.ask(line.strip())
        except InputError as cause:
            complain(str(cause))


def _print(event: Event, as_json: bool) -> None:
    if as_json:
        answer(event, "", as_json)
        return
    if isinstance(event, StreamAnswer):
        print(flush=True)  # its text was printed as it came
    if isinstance(event, Refused):
        complain(event.error)
    else:
        say(event.line)
