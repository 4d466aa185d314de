"""How large the numbers are that go into linear layers, found by showing pictures to the model.

    --calibrate 64            the first 64 scenes of the embedded dataset, each with a question
    --calibrate photos/       every picture of a folder, with one question
    --calibrate asked.jsonl   the first of your own questions of each scene (docs/datasets.md)

How a scene is shown is the kind's (`quantization.kinds`); one scene is in memory at a time, and of
each layer one number is kept: the largest that came in.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.errors import InputError
from edgevlm.evaluation.evaluate import find_dataset
from edgevlm.evaluation.examples import Example, Question
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.recipe import Recipe
from edgevlm.runtimes.loops import images

QUESTION = "What is in this picture?"
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Presenter:
    """A model that is shown scenes: the linear layers that see them, and how it is done."""

    layers: Sequence[nn.Linear]
    show: Callable[[Example], None]


class Calibration:
    """Largest inputs, for the weights of one model that is in memory."""

    def __init__(self) -> None:
        # By where a matrix lies, which the tensor keeps: layers of static modules may be a part of
        # a larger matrix of the model, and another tensor each time.
        self._tops: dict[Hashable, tuple[Tensor, float]] = {}

    def watch(self, module: nn.Linear, given: tuple[Tensor, ...]) -> None:
        """Look at the input of a layer."""
        top = float(given[0].abs().max())
        _, known = self._tops.get(_place(module.weight), (module.weight, 0.0))
        self._tops[_place(module.weight)] = module.weight, max(top, known)

    def beside(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a block, and for each matrix NAME the largest input, NAME.top."""
        tops = {
            f"{name}.top": torch.tensor(self._tops[_place(tensor)][1])
            for name, tensor in tensors.items()
            if _place(tensor) in self._tops
        }
        return tensors | tops


def calibrate(
    recipe: Recipe, checkpoint: Checkpoint, model: Any, progress: Callable[[str], None]
) -> Calibration:
    """Show the pictures of `recipe.calibrate` to a model that is in memory.

    Raises:
        InputError: If there is no picture, or one cannot be read.
    """
    assert recipe.calibrate is not None
    kind = importlib.import_module(f"edgevlm.quantization.kinds.{checkpoint.family.KIND}")
    shown: Presenter = kind.presenter(recipe, checkpoint, model)
    found = Calibration()
    hooks: list[Any] = [layer.register_forward_pre_hook(found.watch) for layer in shown.layers]
    count = 0
    try:
        for count, example in enumerate(_examples(recipe.calibrate, recipe.frames), 1):
            progress(f"calibrate: scene {count}")
            shown.show(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise InputError(f"'{recipe.calibrate}' has no picture to calibrate with")
    return found


def _place(matrix: Tensor) -> Hashable:
    """What two tensors have in common that are the same numbers in memory."""
    return matrix.data_ptr(), tuple(matrix.shape)


def _examples(text: str, frames: int) -> Iterator[Example]:
    """Scenes with as many frames as the model takes; a picture is a clip that stands still."""
    if text.isdecimal():
        found = find_dataset("embedded").examples(frames, int(text))
    elif Path(text).is_dir():
        found = _of_folder(Path(text))
    else:
        found = find_dataset(text).examples(frames, None)
    for example in found:
        if len(example.frames) in (1, frames):
            shown = example.frames * (frames // len(example.frames))
            yield replace(example, frames=shown)


def _of_folder(folder: Path) -> Iterator[Example]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURES:
            question = Question("calibrate", QUESTION, "")
            yield Example(path.name, (images.load(path),), (question,))
