"""Frames of a video that are picked by the question: an encoder bundle scores them.

    candidates, evenly in time -> likeness of each with the question -> anchors -> a run of
    neighbouring candidates around each anchor -> F frames

The first anchor is the candidate most like the question; each further one is the most like it of
those that are apart from all anchors, by half of what even anchors would be. Runs are of F / 4
candidates, so that what moves is seen moving, and four things can be asked about.

Source: after F2C (arXiv 2510.02262), relevant and diverse anchors that become clips, of which we
know the abstract: its objective, adaptive lengths and resolutions are not here. Limits: a likeness
of CLIP's kind knows what is in a picture, not what happens between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.contract import Loop
from edgevlm.runtimes.loops.encoder import EncoderLoop, mean_unit
from edgevlm.runtimes.loops.images.picking import FramesMethod, Picker

RUNS = 4  # anchors of a clip


class LikeTheQuestion(FramesMethod):
    """Frames around those that are most like a text.

    Args:
        scorer: A bundle with embeddings of pictures and texts.
        question: The text.
    """

    def __init__(self, scorer: EncoderLoop, question: str) -> None:
        super().__init__()
        self._scorer, self._text = scorer, mean_unit([scorer.embed_text(question)])

    def look_at(self, picture: Image.Image) -> NDArray[Any]:
        """The cosine of a candidate with the question, f64 [1]."""
        seen = mean_unit([self._scorer.embed([picture])])
        return np.array([seen @ self._text], np.float64)

    def __call__(self, small: NDArray[Any], frames: int) -> Sequence[int]:
        """Pick by the cosines f64 [n, 1]; as `FramesMethod`."""
        return around_anchors(small[:, 0], frames)


def scorer_of(loop: Loop) -> EncoderLoop:
    """The loop of a bundle that can score frames.

    Raises:
        InputError: If the bundle has no embeddings of pictures and texts.
    """
    name = loop.bundle.path.name
    if not isinstance(loop, EncoderLoop) or loop.plan.host.text is None:
        raise InputError(
            f"--picker '{name}' compares no pictures with texts; give a bundle of CLIP or SigLIP"
        )
    if loop.plan.host.image.frames > 1:
        raise InputError(f"--picker '{name}' takes clips; export it without --frames")
    return loop


def question_picker(scorer: EncoderLoop, question: str, frames: int) -> Picker:
    """What picks `frames` frames by a question; it looks at four for each."""
    method = LikeTheQuestion(scorer, question)
    return Picker(method, method.candidates(frames))


def asked_picker(loop: Loop | None, question: str, frames: int) -> Picker | None:
    """The same of an open bundle; None without one.

    Raises:
        InputError: As `scorer_of`.
    """
    return None if loop is None else question_picker(scorer_of(loop), question, frames)


def around_anchors(scores: NDArray[np.float64], frames: int) -> list[int]:
    """Indices of `frames` candidates, ascending: runs around anchors.

    Args:
        scores: Of n candidates, f64 [n]; of equals the first is the better.
        frames: At most n.
    """
    count, run = len(scores), max(1, frames // RUNS)
    apart = count * run / (2 * frames)
    anchors, picked = list[int](), set[int]()
    for index in np.argsort(-scores, kind="stable"):
        if len(picked) < frames and all(abs(index - anchor) >= apart for anchor in anchors):
            anchors.append(int(index))
            near = sorted(range(count), key=lambda i: (abs(i - anchors[-1]), i))
            new = [i for i in near if i not in picked][: min(run, frames - len(picked))]
            picked.update(new)
    rest = [int(i) for i in np.argsort(-scores, kind="stable") if int(i) not in picked]
    picked.update(rest[: frames - len(picked)])
    return sorted(picked)
