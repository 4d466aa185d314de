"""What is asked of a loop whose kind is not known: by `edgevlm run`, by a profile."""

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
    """Everything that a bundle of any kind can be asked with; a loop reads what it takes.

    Attributes:
        images: Image files.
        video: A video file.
        labels: Texts to compare each image with.
        questions: Questions in turn; each is taken when the one before is answered.
        max_new_tokens: Most tokens of an answer.
        sampling: How tokens are chosen.
        draft: What guesses tokens, see `drafts`.
        on_text: Called with each new piece of text.
    """

    images: Sequence[Path] = ()
    video: Path | None = None
    labels: Sequence[str] = ()
    questions: Iterable[str] = ()
    max_new_tokens: int = 64
    sampling: Sampling = Sampling()
    draft: str | None = None
    on_text: Callable[[str], None] = lambda _: None


class Answered(Protocol):
    """One answer: a dataclass whose fields are its JSON document."""

    @property
    def shown(self) -> str:
        """What is printed of it, after the text that came piece by piece."""

    @property
    def summary(self) -> str:
        """Its figures, one line."""


class Loop(Protocol):
    """A bundle that is open.

    Attributes:
        takes: Options of `edgevlm run` that such a bundle takes, beside those of all.
        needs: Options of which one must be given.
        usage: What such a bundle does, and what it is given: the end of a refusal.
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
        """Forget everything that was asked: for who measures."""


def check_options(loop: type[Loop], given: Collection[str]) -> None:
    """Refuse options that a loop does not take, and a request that asks for nothing.

    Args:
        loop: Class of the loop.
        given: Names of the options that the user gave, those of all bundles left out.

    Raises:
        InputError: One line that says what such a bundle takes.
    """
    for name in sorted(set(given) - set(loop.takes)):
        raise InputError(f"no --{name.replace('_', '-')} here: {loop.usage}")
    if not set(given) & set(loop.needs):
        raise InputError(f"nothing is asked: {loop.usage}")
