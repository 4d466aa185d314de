"""NLVR: is a sentence true of an image of three boxes with shapes? About 1,000 in the test set.

Source: A Corpus of Natural Language for Visual Reasoning (ACL 2017), the original corpus with drawn
images, github.com/lil-lab/nlvr, CC-BY-4.0; the folder is read as it is published:

    nlvr/test/test.json                      a JSON object a line: sentence, label, identifier, …
    nlvr/test/images/DIRECTORY/test-IDENTIFIER-K.png      K = 0 to 5: the boxes in another order

An identifier is SET-POSITION: one sentence was written for the up to four images of a set, so a set
is one scene. Only permutation 0 of each image is asked about: the others have the same boxes and
answer, and would not narrow the interval. Figures for all six are not comparable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.bundle.documents import shown
from edgevlm.errors import InputError
from edgevlm.evaluation.datasets.shared.lines import first_scenes, inside, objects
from edgevlm.evaluation.datasets.shared.sentences import true_or_false
from edgevlm.evaluation.examples import Example, Question
from edgevlm.runtimes.loops import images

SUMMARY = "NLVR, true or false of a sentence about drawn shapes (ACL 2017)"
PATH = "the folder of NLVR, or of one split: nlvr/test"

SPLIT = "test"
PERMUTATION = 0
TASK = "nlvr"


@dataclass(frozen=True)
class _SentenceLine:
    scene: str
    image: Path
    question: Question


def examples(path: Path | str, frames: int = 1, limit: int | None = None) -> Iterator[Example]:
    """An image and its sentence, in the order of the file.

    Args:
        path: The folder `nlvr`, whose split `test` is taken, or the folder of a split.
        frames: Not used: there are no clips.
        limit: Most scenes, that is sets of images; None takes all.

    Raises:
        InputError: If the folder or a line has another form, or an image is missing.
    """
    folder = _split(Path(path))
    file = folder / f"{folder.name}.json"
    lines = [_line(folder, f"'{file}' line {number}", line) for number, line in objects(file)]
    if not lines:
        raise InputError(f"'{file}' has no sentences")
    wanted = first_scenes((line.scene for line in lines), limit)
    return (
        Example(line.scene, (images.load(line.image),), (line.question,))
        for line in lines
        if line.scene in wanted
    )


def _split(path: Path) -> Path:
    for folder in (path / SPLIT, path.resolve()):
        if (folder / f"{folder.name}.json").is_file():
            return folder
    raise InputError(
        f"no NLVR at '{path}': expected a folder with {SPLIT}/{SPLIT}.json, or a split's folder"
    )


def _line(folder: Path, where: str, document: dict[str, Any]) -> _SentenceLine:
    patterns = {
        "sentence": r"[\s\S]*\w[\s\S]*",
        "label": "true|false",
        "identifier": r"\d+-\d+",
        "directory": r"\d+",
    }
    values = {key: document.get(key) for key in patterns}
    for key, pattern in patterns.items():
        value = values[key]
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            raise InputError(f"{where}: '{key}' is {shown(value)}, which NLVR never has")
    identifier = str(values["identifier"])
    name = f"images/{values['directory']}/{folder.name}-{identifier}-{PERMUTATION}.png"
    question = Question(TASK, true_or_false(str(values["sentence"])), str(values["label"]))
    return _SentenceLine(identifier.partition("-")[0], inside(folder, name, where), question)
