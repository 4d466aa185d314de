"""`edgevlm run`: ask a bundle about an image or a clip, or for an embedding.

The loop of a bundle's kind lists the options that it supports (`runtimes.loops.contract.Loop`).
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from edgevlm.bundle.files import Bundle
from edgevlm.cli.shared import generating, streaming
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.default_bundle import KIND, default_bundle
from edgevlm.cli.shared.output import answer, complain, say, show
from edgevlm.errors import InputError
from edgevlm.runtimes import values
from edgevlm.runtimes.loading import load_loop, loop_class
from edgevlm.runtimes.loops.contract import Loop, RunRequest, check_options
from edgevlm.runtimes.loops.sampling import Sampling
from edgevlm.runtimes.loops.video.files import check_output
from edgevlm.runtimes.residency import pressure
from edgevlm.runtimes.residency.streamed import StreamedBlocks

# Options of every bundle; the others depend on the loop.
OF_ALL = ("bundle", "engine", "threads", "memory", "json")
MOST_LABEL_BYTES = 10 * 10**6  # of a file of labels
MOST_LETTERS = 10**6  # of a question on stdin: more than any context holds


def main(
    context_: typer.Context,
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help="Bundle; default: the embedded model."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Question about the images, which are in front of it, or where it says {image}.",
        ),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Image; may be repeated.")
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Video, for bundles exported with --frames; with --stream also /dev/video0, an"
            " rtsp:// or http:// address, or - for stdin.",
        ),
    ] = None,
    picker: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="A bundle of CLIP or SigLIP that picks the frames of --video by the first"
            " question; default: as the bundle says.",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Go through the video frame by frame, whatever its length; for bundles exported"
            " with --stream.",
        ),
    ] = False,
    fps: Annotated[
        float, typer.Option(metavar="N", help="Frames of a stream a second of its time.")
    ] = 1.0,
    pace: Annotated[
        bool, typer.Option("--pace", help="Stream a file as fast as its clock says, not faster.")
    ] = False,
    ask_every: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Ask --prompt so often in a stream's time; default: once, at its end.",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt of the conversation.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Read further questions from stdin.")
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…|@FILE",
            help="Texts to compare each image with, for bundles with embeddings; @FILE has one a"
            " line, with commas if need be.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Video to write, of a bundle that makes one: .mp4, .webm, .gif, .webp, or a folder"
            " of frames.",
        ),
    ] = None,
    force: o.Force = False,
    negative: Annotated[
        str, typer.Option(metavar="TEXT", help="What a video does not show, under guidance.")
    ] = "",
    guidance: Annotated[
        float | None,
        typer.Option(
            min=1, max=100, metavar="G", help="Guidance of a video; default: the bundle's."
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:key=value,…]",
            help="Rule that spares denoising steps, instead of the bundle's; may be repeated, and"
            " 'none' is none.",
        ),
    ] = None,
    leap: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Short for --rule leap:after=N."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted video of the same options.")
    ] = False,
    engine: o.Engine = None,
    threads: o.Threads = None,
    memory: o.Memory = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most tokens of an answer.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, metavar="T", help="Sampling temperature; 0 is greedy.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="P", help="Probability mass that sampling draws from."),
    ] = 1.0,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="lookup|skip=N",
            help="Speculative decoding: draft tokens by prompt lookup, or with N decoder layers"
            " skipped. Needs a bundle exported with --speculate.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of sampling, or of a video's noise.")
    ] = 0,
    json: o.Json = False,
) -> None:
    """Answer a question about images, or give their embeddings.

    Prints text as it is generated, then figures on stderr. With --json each answer, and each image
    of a bundle with embeddings, is one line.
    """
    path, texts, refused = _checked(context_, bundle, memory), _labels(labels), list[str]()
    loop = _announced(_listening(load_loop(path, engine, threads, memory, progress=say)))
    sampling, noting = Sampling(temperature, top_p, seed), _noting(refused, json) if chat else None
    asked = RunRequest(
        images=image or (), video=None if video is None else Path(video), labels=texts,
        system=system, draft=draft, questions=_questions(prompt, chat), picker=_scorer(context_),
        max_new_tokens=max_new_tokens, sampling=sampling, on_text=_stream(json), on_refused=noting,
    )  # fmt: skip
    if stream or output is not None:
        (streaming if stream else generating).show(loop, asked, context_.params)
        return
    show(loop.answers(asked), json)
    if refused:
        raise typer.Exit(1)


def _checked(context: typer.Context, bundle: str | None, memory: str | None) -> str | Path:
    """The bundle to open, after a check that it supports the options of the command line."""
    options = {name for name in context.params if o.is_given(context, name)} - {*OF_ALL}
    if Path() in (context.params["image"] or ()):
        raise typer.BadParameter("--image is empty, or this folder; give the name of a file")
    if {"image", "video"} <= options:
        raise typer.BadParameter("give --image or --video, not both")
    if "output" in options:  # before anything is loaded
        check_output(context.params["output"], context.params["force"])
    if "picker" in options and (memory is not None or not {"video"} <= options):
        raise typer.BadParameter(
            "--picker picks frames of a --video, and its bundle is held in memory whole beside the"
            " other; leave out --memory"
        )
    streaming.check(context.params, options)
    if not options:  # without an input the default bundle is not exported
        raise typer.BadParameter(
            "no input; give --prompt TEXT, or --chat to type questions, or --image FILE for a"
            " bundle with embeddings"
        )
    if bundle is None:  # before the default one is exported
        check_options(loop_class(KIND), options)
        return _path(bundle, memory)
    check_options(loop_class(Bundle.open(bundle).plan.kind), options)
    return bundle


def _scorer(context: typer.Context) -> Loop | None:
    """The open bundle of `--picker`."""
    path, threads = context.params["picker"], context.params["threads"]
    return None if path is None else load_loop(path, None, threads)


def _labels(text: str | None) -> tuple[str, ...]:
    """The texts of `--labels`: between commas, or the lines of a file."""
    if text is None:
        return ()
    if text.startswith("@"):
        return _lines(Path(text[1:]))
    labels = tuple(label.strip() for label in text.split(","))
    if "" in labels:
        raise typer.BadParameter(f"--labels has an empty text: '{text[:60]}'")
    return values.texts("--labels", labels)


def _lines(path: Path) -> tuple[str, ...]:
    """The lines of a file that are not blank, each a label; it may have commas.

    Raises:
        InputError: If it is no text of a reasonable size, or has no line.
    """
    if not path.is_file():
        raise InputError(f"--labels: there is no file '{path}'; it has a label a line")
    if path.stat().st_size > MOST_LABEL_BYTES:
        raise InputError(f"--labels: '{path}' is too large, at most 10 MB are read")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as cause:
        raise InputError(f"--labels: '{path}' is not valid UTF-8") from cause
    labels = tuple(line.strip() for line in lines if line.strip())
    if not labels:
        raise InputError(f"--labels: '{path}' has no label; it has a label a line")
    return labels


def _questions(prompt: str | None, chat: bool) -> Iterator[str]:
    """The prompt, or a line from stdin; in a chat further lines, each read in its turn."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text, with their line
    question = values.text("the question", prompt) if prompt is not None else _read("> ")
    while question is not None:
        yield question
        question = _read("> ") if chat else None


def _path(bundle: str | None, memory: str | None) -> str | Path:
    """The bundle to open; the default one is exported if it is not there yet."""
    path = bundle or default_bundle()
    if memory is not None and bundle is None and "torch" in sys.modules:
        # The default was exported just now, and what that took would count in the budget.
        os.execv(sys.executable, sys.orig_argv)
    return path


def _stream(as_json: bool) -> Callable[[str], None]:
    """Prints text as it comes, where the result is no document."""
    return (lambda _: None) if as_json else (lambda text: print(text, end="", flush=True))


def _noting(refused: list[str], as_json: bool) -> Callable[[InputError], None]:
    """Says what is wrong with a question of a chat, and keeps it in `refused`."""

    def note(cause: InputError) -> None:
        refused.append(str(cause))
        complain(str(cause))
        if as_json:  # a line for each question
            answer({"error": str(cause)}, "", as_json)

    return note


def _announced(loop: Loop) -> Loop:
    """A loop of a bundle that is no whole model says so first."""
    if loop.plan.recipe.trial:
        say(loop.plan.recipe.trial)
    return loop


def _listening(loop: Loop) -> Loop:
    """A loop with a budget takes its smallest when SIGUSR1 or Linux says that memory is short."""
    blocks = loop.blocks
    if not isinstance(blocks, StreamedBlocks):
        return loop

    def lower(*_: object) -> None:
        blocks.set_budget(blocks.minimum_budget_bytes)

    pressure.watch(lower)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lower)
    return loop


def _read(mark: str) -> str | None:
    """A line from stdin; None at the end or when it is empty."""
    say(mark, end="")
    line = sys.stdin.readline(MOST_LETTERS + 1)
    if len(line) > MOST_LETTERS:  # a device or a file without lines
        raise InputError(f"the question on stdin has more than {MOST_LETTERS:,} letters in a line")
    return line.strip() or None
