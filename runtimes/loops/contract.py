"""The contract of a loop of any kind, as `edgevlm run` and profiles use it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import Plan
from edgevlm.errors import InputError, unknown_name
from edgevlm.recipe import MOST_GUIDANCE, MethodChoice
from edgevlm.runtimes import values
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.loops.sampling import Sampling


@dataclass(frozen=True)
class VideoRequest:
    """A video to make.

    Attributes:
        prompt: What it shows.
        negative: What it does not, under guidance.
        seed: Of the noise to begin with; the same noise as PyTorch's on a CPU.
        guidance: Factor of classifier-free guidance; None is the bundle's own.
        rules: Rules that spare calls of the denoiser; None is the bundle's own.
        output: File or folder to write; None writes nothing.
        force: Replace what is there.
        resume: Go on after the steps that an interrupted run of the same video has done.
        on_step: Called with a line at the beginning of each step.
    """

    prompt: str = ""
    negative: str = ""
    seed: int = 0
    guidance: float | None = None
    rules: Sequence[MethodChoice] | None = None
    output: Path | None = None
    force: bool = False
    resume: bool = False
    on_step: Callable[[str], None] = lambda _: None

    @classmethod
    def of(cls, prompt: object, options: Mapping[str, Any]) -> VideoRequest:
        """A request from arguments of a caller; rules may be texts, and the output a text.

        Raises:
            InputError: If one is unknown, of another type or out of range.
        """
        given, known = dict(options), [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(unknown_name("argument of generate_video", name, known[1:]))
        values.whole("seed", given.get("seed", 0), least=0)
        if given.get("guidance") is not None:
            given["guidance"] = values.real("guidance", given["guidance"], 1, MOST_GUIDANCE)
        if given.get("output") is not None:
            given["output"] = values.path("output", given["output"])
        if given.get("rules") is not None:
            texts = values.texts("rules", given["rules"])
            given["rules"] = [MethodChoice.parse(text) for text in texts]
        return cls(prompt=values.text("prompt", prompt), **given)


@dataclass(frozen=True)
class RunRequest:
    """The inputs of a bundle of any kind; a loop reads those that it supports.

    Attributes:
        images: Image files.
        video: A video file.
        labels: Texts to compare each image with.
        system: A system text, in front of the first question.
        questions: Questions in turn; each is read after the answer to the one before. `{image}`
            in the first is the place of an image.
        max_new_tokens: Most tokens of an answer.
        sampling: How tokens are chosen.
        draft: How tokens are drafted, see `drafts`.
        video_request: How a video is made, of a bundle that makes one; its prompt is a question.
        picker: An open bundle with embeddings, which picks the frames of the video by the first
            question (`images/asked.py`).
        on_text: Called with each new part of the text.
        on_refused: Called with what is wrong with a question, after which the next is asked; None
            ends with it. Pictures that cannot be read always end the conversation.
    """

    images: Sequence[Path] = ()
    video: Path | None = None
    labels: Sequence[str] = ()
    system: str | None = None
    questions: Iterable[str] = ()
    max_new_tokens: int = 64
    sampling: Sampling = Sampling()
    draft: str | None = None
    video_request: VideoRequest = VideoRequest()
    picker: Loop | None = None
    on_text: Callable[[str], None] = lambda _: None
    on_refused: Callable[[InputError], None] | None = None


class Answered(Protocol):
    """One answer: a dataclass whose fields are its JSON document."""

    @property
    def shown(self) -> str:
        """Text to print, after the streamed text."""

    @property
    def summary(self) -> str:
        """Its figures in one line."""


class Loop(Protocol):
    """An open bundle.

    Attributes:
        takes: Options of `edgevlm run` for such a bundle, apart from the common ones.
        needs: Options of which one is necessary.
        usage: What such a bundle does and takes: the end of an error.
    """

    takes: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]]
    usage: ClassVar[str]
    bundle: Bundle
    blocks: Blocks
    load_ms: float

    def __init__(self, bundle: Bundle, blocks: Blocks) -> None: ...

    @property
    def plan(self) -> Plan[Any]:
        """The bundle's manifest."""

    def answers(self, request: RunRequest) -> Iterator[Answered]:
        """The answers to a request, in turn.

        Raises:
            InputError: If a file cannot be read, or the request does not fit the bundle.
        """

    def forget(self) -> None:
        """Forget all inputs, for measurements."""


def check_options(loop: type[Loop], given: Collection[str]) -> None:
    """Refuse options that a loop does not support, and a request without input.

    Args:
        loop: Class of the loop.
        given: Names of the options that the user gave, without the common ones.

    Raises:
        InputError: If an option does not apply or a necessary one is missing; has `usage`.
    """
    for name in sorted(set(given) - set(loop.takes)):
        raise InputError(f"--{name.replace('_', '-')} does not apply: {loop.usage}")
    if not set(given) & set(loop.needs):
        raise InputError(f"no input: {loop.usage}")
