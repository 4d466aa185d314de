"""What a dataset yields: images or clips with questions and exact answers."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Question:
    """One question and the only answer that is right."""

    task: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Example:
    """A scene and the questions about it.

    Attributes:
        scene: Its name; questions of one scene are not independent, so intervals resample scenes.
        frames: One image, or the frames of a clip in order.
        questions: Each is asked in a conversation of its own, or all in one if `chat`.
        chat: The questions are the turns of one conversation.
        video: The frames were taken from a video, evenly in time.
    """

    scene: str
    frames: tuple[Image.Image, ...]
    questions: tuple[Question, ...]
    chat: bool = False
    video: bool = False
