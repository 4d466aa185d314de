"""`edgevlm run`: ask a bundle about a picture or a clip."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgevlm import api
from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.default_bundle import default_bundle
from edgevlm.errors import InputError
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.loops.sampling import Sampling
from edgevlm.runtimes.loops.text import Answer
from edgevlm.runtimes.residency import pressure
from edgevlm.runtimes.residency.streamed import StreamedBlocks


def main(
    bundle: Annotated[
        str | None, typer.Argument(help="A bundle; without one, the embedded default.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The question.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be repeated.")] = None,
    video: Annotated[Path | None, typer.Option(help="A video, for bundles with frames.")] = None,
    chat: Annotated[bool, typer.Option(help="Go on with questions read from stdin.")] = False,
    engine: Annotated[str | None, typer.Option(help="Engine, see `edgevlm engines`.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; all cores if not given.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Most memory of this process, such as 300MB.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Mass that sampling keeps.")] = 1.0,
    draft: Annotated[
        str | None, typer.Option(help="Guess and check: lookup, or skip=N (export --speculate).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    json: o.Json = False,
) -> None:
    """Answer a question about pictures, streaming the text."""
    if prompt is None and not chat:
        raise typer.BadParameter("nothing is asked; give --prompt TEXT, or --chat for questions")
    if image and video:
        raise typer.BadParameter("give --image or --video, not both")
    path = bundle or default_bundle()
    if memory is not None and bundle is None and "torch" in sys.modules:
        # The default was exported just now, and what that took would count in the budget.
        os.execv(sys.executable, sys.orig_argv)
    loop = load_loop(path, engine, threads, memory, progress=o.say)
    if isinstance(loop.blocks, StreamedBlocks):
        _listen(loop.blocks)
    model = api.Model(loop)
    sampling = Sampling(temperature, top_p, seed)

    def stream(text: str) -> None:
        if not json:
            print(text, end="", flush=True)

    def finish(answer: Answer) -> None:
        o.answer(answer, "", json)
        o.say(_summary(answer))

    pictures = list(image or ()) or None
    options = {
        "max_new_tokens": max_new_tokens, "sampling": sampling, "on_text": stream, "draft": draft,
    }  # fmt: skip
    question = _text(prompt) if prompt is not None else _read("> ")
    if question is None:
        return
    finish(model.generate(pictures, question, video=video, **options))  # type: ignore[arg-type]
    while chat and (question := _read("> ")):
        finish(model.chat(question, **options))  # type: ignore[arg-type]


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
        + f" peak {o.megabytes(answer.peak_rss_bytes)}; {answer.engine}"
    )
