"""`edgevlm run`: ask a bundle about an image or a clip."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from edgevlm import api
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.default_bundle import default_bundle
from edgevlm.cli.shared.output import answer, say
from edgevlm.errors import InputError
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.loops.sampling import Sampling
from edgevlm.runtimes.loops.text import Answer
from edgevlm.runtimes.residency import pressure
from edgevlm.runtimes.residency.streamed import StreamedBlocks
from edgevlm.units import megabytes


def main(
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help="Bundle; default: the embedded model."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Question about the images.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Image; may be repeated.")
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Video, for bundles exported with --frames."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Read further questions from stdin.")
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
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of sampling.")] = 0,
    json: o.Json = False,
) -> None:
    """Answer a question about images.

    Prints the text as it is generated, then figures on stderr.
    """
    _check(prompt, chat, image, video)
    loop = load_loop(_path(bundle, memory), engine, threads, memory, progress=say)
    if isinstance(loop.blocks, StreamedBlocks):
        _listen(loop.blocks)
    question = _text(prompt) if prompt is not None else _read("> ")
    if question is None:
        return
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "draft": draft}
    options |= {"sampling": Sampling(temperature, top_p, seed), "on_text": _stream(json)}
    model = api.Model(loop)
    _finish(model.generate(image or None, question, video=video, **options), json)
    while chat and (question := _read("> ")):
        _finish(model.chat(question, **options), json)


def _check(prompt: str | None, chat: bool, images: list[Path] | None, video: Path | None) -> None:
    """Refuse options that do not go together."""
    if prompt is None and not chat:
        raise typer.BadParameter("no question; give --prompt TEXT, or --chat to type questions")
    if images and video:
        raise typer.BadParameter("give --image or --video, not both")


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


def _finish(found: Answer, as_json: bool) -> None:
    answer(found, "", as_json)
    say(_summary(found))


def _listen(blocks: StreamedBlocks) -> None:
    """The smallest budget from the next block on, when SIGUSR1 or Linux says memory is short."""

    def lower(*_: object) -> None:
        blocks.set_budget(blocks.minimum_budget_bytes)

    pressure.watch(lower)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lower)


def _read(mark: str) -> str | None:
    """A line from stdin; None at the end or when it is empty."""
    print(mark, end="", file=sys.stderr, flush=True)
    try:
        return _text(sys.stdin.readline().strip()) or None
    except UnicodeDecodeError as cause:
        raise InputError("the question is not valid UTF-8") from cause


def _text(question: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in question):  # bytes that are no UTF-8
        raise InputError("the question is not valid UTF-8")
    return question


def _summary(answer: Answer) -> str:
    speed, other = answer.decode_tokens_per_s, answer.prompt_tokens - answer.visual_tokens
    return (
        f"{answer.visual_tokens} visual + {other} other tokens;"
        f" first token {answer.ttft_ms:.0f} ms (vision {answer.vision_ms:.0f}, reduce"
        f" {answer.reduce_ms:.1f}, prefill {answer.prefill_ms:.0f});"
        + (f" {speed:.1f} tokens/s;" if speed else "")
        + (f" {answer.accepted} of {answer.drafted} guesses right;" if answer.drafted else "")
        + f" {answer.loads} loads;"
        + f" peak {megabytes(answer.peak_rss_bytes)}; {answer.engine}"
    )
