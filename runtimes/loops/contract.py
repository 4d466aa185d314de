"""The contract of a loop of any kind, as `edgevlm run` and profiles use it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import Plan
from edgevlm.errors import InputError
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.loops.sampling import Sampling


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
