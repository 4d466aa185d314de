"""Largest inputs of linear layers, recorded while the model answers questions about images.

    --calibrate 64            the first 64 scenes of the embedded dataset, each with a question
    --calibrate photos/       every image of a folder, with one question
    --calibrate asked.jsonl   your own questions, the first of each scene (docs/datasets.md)

The kind defines how the model runs on a scene (`quantization.kinds`). One scene is in memory at a
time, and one number is kept for each layer: its largest input.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.errors import InputError
from edgevlm.evaluation.evaluate import find_dataset
from edgevlm.evaluation.examples import Example, Question
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.weights.paging import FileWeight
from edgevlm.recipe import Recipe
from edgevlm.registry import DATASETS
from edgevlm.runtimes.loops import images

QUESTION = "What is in this picture?"
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Presenter:
    """Runs a model on scenes: its linear layers, and the function that runs one scene."""

    layers: Sequence[nn.Linear]
    show: Callable[[Example], None]


class Calibration:
    """Largest inputs of linear layers, by their weights, of one model in memory."""

    def __init__(self) -> None:
        # By address of the matrix, which the tensor keeps alive: a layer of a static module may be
        # part of a larger matrix of the model, and a new tensor each time.
        self._tops: dict[Hashable, tuple[Tensor, float]] = {}

    def record_input(self, module: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        """Record the input of a layer; a forward pre-hook."""
        top = float(inputs[0].abs().max())
        _, largest = self._tops.get(_place(module.weight), (module.weight, 0.0))
        self._tops[_place(module.weight)] = module.weight, max(top, largest)

    def tops(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """For each matrix NAME of a block's weights the largest input, NAME.top."""
        return {
            f"{name}.top": torch.tensor(self._tops[_place(tensor)][1])
            for name, tensor in tensors.items()
            if _place(tensor) in self._tops
        }


def calibrate(
    recipe: Recipe, checkpoint: Checkpoint, model: Any, progress: Callable[[str], None]
) -> Calibration:
    """Run a model in memory on the scenes of `recipe.calibrate`.

    Raises:
        InputError: If there is no image, or one cannot be read.
    """
    assert recipe.calibrate is not None
    kind = importlib.import_module(f"edgevlm.quantization.kinds.{checkpoint.family.KIND}")
    presenter: Presenter = kind.presenter(recipe, checkpoint, model)
    calibration = Calibration()
    hooks: list[Any] = [
        layer.register_forward_pre_hook(calibration.record_input) for layer in presenter.layers
    ]
    count = 0
    try:
        for count, example in enumerate(scenes(recipe.calibrate, recipe.frames), 1):
            progress(f"calibrate: scene {count}")
            presenter.show(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise InputError(
            f"'{recipe.calibrate}' has no image to calibrate with; give a folder with images"
        )
    return calibration


def _place(matrix: Tensor) -> Hashable:
    """A key of the numbers, in memory or in a file, that two tensors may share."""
    if isinstance(matrix, FileWeight):
        return matrix.place
    return matrix.data_ptr(), tuple(matrix.shape)


def scenes(text: str, frames: int) -> Iterator[Example]:
    """Scenes with as many frames as the model takes; an image is repeated as a clip.

    Raises:
        InputError: At once if a text means no pictures; a scene that cannot be read when it is its
            turn.
    """
    return _of_length(_examples(text, frames), frames)


def _of_length(examples: Iterable[Example], frames: int) -> Iterator[Example]:
    for example in examples:
        if len(example.frames) in (1, frames):
            repeated = example.frames * (frames // len(example.frames))
            yield replace(example, frames=repeated)


def _examples(text: str, frames: int) -> Iterable[Example]:
    if text.isdecimal():
        return find_dataset("embedded").examples(frames, int(text))
    if Path(text).is_dir():
        return _of_folder(Path(text))
    if Path(text).suffix.lower() in PICTURES or _is_nothing(text):
        raise InputError(
            "pictures to calibrate with must be a number of scenes, a folder or a .jsonl file that"
            f" exists, got '{text[:200]}'"
        )
    return find_dataset(text).examples(frames, None)


def _is_nothing(text: str) -> bool:
    """Whether a text is neither a file nor a dataset."""
    try:
        there = Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        there = False
    return not there and text.partition(":")[0].replace("-", "_") not in DATASETS.names()


def _of_folder(folder: Path) -> Iterator[Example]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURES:
            question = Question("calibrate", QUESTION, "")
            yield Example(path.name, (images.load(path),), (question,))
