"""What a dataset yields: pictures or clips with questions and exact answers."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Question:
    """One question and the one answer that counts as right."""

    task: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Example:
    """A scene and what is asked about it.

    Attributes:
        scene: Its name; questions of one scene are not independent, so intervals resample scenes.
        frames: One picture, or the frames of a clip in order.
        questions: Asked each in a conversation of its own, or one after another if `chat`.
        chat: The questions are the turns of one conversation.
    """

    scene: str
    frames: tuple[Image.Image, ...]
    questions: tuple[Question, ...]
    chat: bool = False
