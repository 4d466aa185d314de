"""A user's own questions: a file of JSON lines, a scene a line, images beside it.

    {"image": "shelf.jpg", "prompt": "How many cups?", "answer": "3", "task": "count"}
    {"scene": "yard", "video": "yard.mp4", "chat": true, "questions": [{"prompt": …, "answer": …}]}

A line has one of `image`, `frames` (images of a clip) and `video`, and either `questions` or one
question of its own, `prompt`, `answer` and `task`. docs/datasets.md has every key. All lines
are checked before the first image is decoded. Of a clip, as many frames as the model takes are
chosen at equal distances; they count as one second apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgevlm.bundle.documents import DocumentError, read
from edgevlm.errors import InputError
from edgevlm.evaluation.datasets.shared.lines import first_scenes, inside, objects
from edgevlm.evaluation.examples import Example, Question
from edgevlm.runtimes.loops import images

SUMMARY = "your own questions, a JSON line a scene"
PATH = "a .jsonl file; its images and videos lie in the same folder"
ENDINGS = (".jsonl", ".json", "")  # files that need no `jsonl:`; an empty one is any other

TASK = "question"  # of a question without one
SUBJECTS = ("image", "frames", "video")


@dataclass(frozen=True)
class _SceneLine:
    scene: str | None = None
    image: str | None = None
    frames: tuple[str, ...] | None = None
    video: str | None = None
    questions: tuple[Question, ...] | None = None
    prompt: str | None = None
    answer: str | None = None
    task: str | None = None
    chat: bool = False


@dataclass(frozen=True)
class _Scene:
    name: str
    files: tuple[Path, ...]
    kind: str
    questions: tuple[Question, ...]
    chat: bool
    where: str


def examples(path: Path | str, frames: int = 1, limit: int | None = None) -> Iterator[Example]:
    """The scenes of a file, in its order.

    Args:
        path: The file.
        frames: Frames that the model takes of a clip; at 1 a clip is not decoded and has no
            frames, so that the caller leaves it out.
        limit: Most scenes; None takes all.

    Raises:
        InputError: If a line has another form, or its file is missing or outside of the folder.
    """
    scenes = [_scene(Path(path), number, line) for number, line in objects(Path(path))]
    if not scenes:
        raise InputError(f"'{path}' has no questions")
    wanted = first_scenes((scene.name for scene in scenes), limit)
    return (
        Example(
            scene.name, _frames(scene, frames), scene.questions, scene.chat, scene.kind == "video"
        )
        for scene in scenes
        if scene.name in wanted
    )


def _scene(path: Path, number: int, document: dict[str, Any]) -> _Scene:
    where = f"'{path}' line {number}"
    defaults = {field.name: field.default for field in fields(_SceneLine)}
    asked = document.get("questions")
    if isinstance(asked, list):
        asked = [{"task": TASK} | q if isinstance(q, dict) else q for q in asked]
        document = document | {"questions": asked}
    try:
        line = read(_SceneLine, defaults | document, where)
    except DocumentError as cause:
        raise InputError(str(cause)) from cause
    kinds = [kind for kind in SUBJECTS if getattr(line, kind) is not None]
    if len(kinds) != 1:
        got = " and ".join(f"'{kind}'" for kind in kinds) or "none"
        raise InputError(f"{where} must have one of 'image', 'frames', 'video', got {got}")
    subject = getattr(line, kinds[0])
    names = (subject,) if isinstance(subject, str) else subject
    files = tuple(inside(path.parent, name, where) for name in names)
    name = f"line {number}" if line.scene is None else line.scene
    return _Scene(name, files, kinds[0], _questions(line, where), line.chat, where)


def _questions(line: _SceneLine, where: str) -> tuple[Question, ...]:
    single = (line.prompt, line.answer, line.task)
    if line.questions is not None:
        if single != (None, None, None):
            raise InputError(f"{where} has both 'questions' and a question of its own")
        questions = line.questions
    elif line.prompt is None or line.answer is None:
        missing = "prompt" if line.prompt is None else "answer"
        raise InputError(f"{where} lacks the key '{missing}', or 'questions'")
    else:
        task = TASK if line.task is None else line.task
        questions = (Question(task, line.prompt, line.answer),)
    if not questions:
        raise InputError(f"{where}.questions is empty")
    for question in questions:
        for key in ("task", "prompt", "answer"):
            if not getattr(question, key).strip():
                raise InputError(f"{where} has a question with an empty '{key}'")
    return questions


def _frames(scene: _Scene, frames: int) -> tuple[Image.Image, ...]:
    if scene.kind == "image":
        return (images.load(scene.files[0]),)
    if frames == 1:
        return ()
    if scene.kind == "video":
        return tuple(images.load_clip(scene.files[0], frames)[0])
    count = len(scene.files)
    if count < frames:
        raise InputError(f"{scene.where}.frames has {count} images, the model takes {frames}")
    chosen = np.linspace(0, count - 1, frames).round().astype(int)
    return tuple(images.load(scene.files[i]) for i in chosen)
