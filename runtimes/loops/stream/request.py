"""What a stream is of, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgevlm.errors import InputError
from edgevlm.runtimes import values
from edgevlm.runtimes.loops.sampling import Sampling

LEAST, MOST = 1e-3, 1e6  # frames a second, and seconds between questions
SCENE_SHARE = 0.5  # where more of a view's patches changed, it shows another scene


@dataclass(frozen=True)
class StreamRequest:
    """One stream.

    Attributes:
        source: See `source.start`.
        prompt: A question that is asked at the end of the stream, or `ask_every` so many seconds
            of it; None asks nothing.
        ask_every: See `prompt`.
        fps: Frames a second of the stream's time.
        pace: Whether a file goes by its clock.
        scene: The share of changed patches above which a view shows another scene.
        system: A system text, in front of the stream.
        max_new_tokens: Most tokens of an answer.
        sampling: How tokens are chosen.
        on_text: Called with each new part of an answer.
        asking: Whether further questions may come; the stream does not end before.
        sensors: Called at the beginning; gives what is called at the end, which gives fields of
            `End`.

    Raises:
        InputError: If a value has another type, or is out of range.
    """

    source: Any
    prompt: str | None = None
    ask_every: float | None = None
    fps: float = 1.0
    pace: bool = False
    scene: float = SCENE_SHARE
    system: str | None = None
    max_new_tokens: int = 64
    sampling: Sampling = Sampling()
    on_text: Callable[[str], None] = lambda _: None
    asking: Callable[[], bool] = lambda: False
    sensors: Callable[[], Callable[[], dict[str, Any]]] = lambda: dict

    def __post_init__(self) -> None:
        """Refuse what no stream takes."""
        for name in ("fps", "ask_every"):
            value = getattr(self, name)
            if value is not None and not LEAST <= value <= MOST:
                raise InputError(f"{name} must be a number from {LEAST:g} to {MOST:g}, got {value}")
        if self.ask_every is not None and self.prompt is None:
            raise InputError("ask_every needs a prompt to ask")
        values.whole("max_new_tokens", self.max_new_tokens, least=1)
