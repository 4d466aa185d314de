"""What a server takes, and how it says no: OpenAI's error form, one line in the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; sizes in bytes, times in seconds."""

    queue: int = 16  # requests that wait or run
    body_bytes: int = 32 * 10**6
    picture_bytes: int = 20 * 10**6  # of an address
    pictures: int = 32
    side: int = 16_384  # pixels
    deadline_s: float = 120.0
    most_tokens: int = 512  # of an answer that does not say
    fetch_s: float = 10.0


@dataclass
class Refused(Exception):
    """A request that is not answered."""

    status: int
    message: str
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        """The body of the answer, as OpenAI's servers have it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


def wrong(message: str, code: str | None = None) -> Refused:
    """A request that has a mistake."""
    return Refused(400, message, code)
