"""A question as callers give it: a text with pictures beside it, or a list of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.images.pictures import Picture, is_picture
from edgevlm.runtimes.loops.images.sources import Data


def prompt_parts(
    image: Any, prompt: Any, video: Any
) -> tuple[str | Sequence[str | None], list[Picture]]:
    """A prompt, with None in place of its pictures where it is a list, and the pictures.

    Raises:
        InputError: If a member of a list is no text and no picture, or there are others beside it.
    """
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, str | Data)
    if not listed:
        return prompt, _pictures(image)
    if image is not None or video is not None:
        raise InputError(
            "the pictures of a prompt that is a list stand in it; leave out image and video"
        )
    for index, member in enumerate(prompt):
        if not isinstance(member, str) and not is_picture(member):
            raise InputError(
                f"prompt[{index}] must be a text or a picture, got {type(member).__name__}"
            )
    parts = [member if isinstance(member, str) else None for member in prompt]
    return parts, [member for member in prompt if not isinstance(member, str)]


def _pictures(image: Any) -> list[Picture]:
    """The pictures of a question: none, one, or each of a list."""
    if image is None:
        return []
    several = isinstance(image, Sequence) and not isinstance(image, str | Data)
    return list(image) if several else [image]
