"""A vision language model answers the first question of a scene, with all visual tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from edgevlm.evaluation.examples import Example
from edgevlm.evaluation.pytorch import PyTorchAnswerer
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.planning.vlm import make_plan
from edgevlm.quantization.calibrate import Presenter
from edgevlm.quantization.schemes import Schemes
from edgevlm.recipe import Recipe

TOKENS = 8  # of each answer


def presenter(recipe: Recipe, checkpoint: Checkpoint, model: Any) -> Presenter:
    """Shows scenes to `model`; its own layers see them."""
    exact = replace(
        recipe,
        tokens=None,
        methods=(),
        quantize=Schemes(),
        calibrate=None,
        context=None,
        chunk=None,
    )
    answerer = PyTorchAnswerer(make_plan(exact, checkpoint), model, TOKENS)

    def show(example: Example) -> None:
        answerer.set_frames(example.frames)
        answerer.ask(example.questions[0].prompt, follow_up=False)

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return Presenter(layers, show)
