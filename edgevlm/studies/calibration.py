"""Calibrate a method: run the model on pictures, and find the options that the method needs.

The method's file says how (edgevlm/compress/shared/calibration.py); here are the model, the
pictures, and the line of a recipe that comes out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgevlm.compress.shared.calibration import Calibrated
from edgevlm.errors import InputError, PlanError, RecipeError
from edgevlm.evaluation.examples import Example
from edgevlm.evaluation.pytorch import TableRows, question_plan
from edgevlm.graphs.parts import EncoderParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.find import find
from edgevlm.models.quiet import without_kernel_advice
from edgevlm.models.weights.paging import KEPT_BYTES
from edgevlm.planning.plan import make_plan
from edgevlm.planning.vlm import VlmPlanned
from edgevlm.quantization.calibrate import scenes
from edgevlm.recipe import MethodChoice, OptionValue, Recipe
from edgevlm.registry import METHODS
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.sequence import assemble
from edgevlm.runtimes.loops.spelling import Visual


@dataclass(frozen=True)
class MethodCalibration:
    """The result: the value of `--method`, and what was measured.

    Attributes:
        model: The model, as it was named.
        method: The method with its options, as `--method` takes it.
        images: Where the pictures are from.
        views: Views that the encoder saw, all pictures together.
        measured: The figures behind the options, by name.
    """

    model: str
    method: str
    images: str
    views: int
    measured: dict[str, Any]


@dataclass(frozen=True)
class AskedPicture:
    """A picture with its first question; a `Picture` of a calibration.

    Attributes:
        subject: The model.
        views: Its views, f32 [P, 3, h_px, w_px].
        question: Text.
    """

    subject: Pictures
    views: Tensor
    question: str

    def last_state(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The language model's state of the last row of the question, f32 [C]."""
        planned, parts = self.subject.planned(tokens.shape[1]), self.subject.parts
        frames = planned.plan.host.image.frames
        times = tuple(float(i) for i in range(frames))
        visual = Visual(tokens[0].numpy(), positions[0].numpy(), times, float(frames))
        rows = assemble(
            planned.plan,
            planned.plan.host.layout.prompt,
            TableRows(parts),
            planned.speller.bundled,
            self.question,
            [visual],
            planned.plan.host.first_position,
        )
        states = parts.decoder.own(rows.rows, rows.positions, groups=rows.groups).last_hidden_state
        last: Tensor = states[0, -1]
        return last


class Pictures:
    """A model without methods, and pictures to run it on; a `Subject` of a calibration."""

    def __init__(self, recipe: Recipe, source: str) -> None:
        scenes(source, recipe.frames)  # what is no picture is refused before weights are read
        checkpoint = find(recipe.model, recipe.revision)
        planned = make_plan(recipe, checkpoint)
        self._recipe, self._checkpoint = recipe, checkpoint
        self._planned: dict[int | None, VlmPlanned] = {}
        self.parts: Any = planned.parts(checkpoint.load_model(KEPT_BYTES))
        if not self.encoder.layers:
            raise PlanError(
                f"the encoder of '{recipe.model}' runs no layer, so nothing merges in it"
            )
        self.image, self._frames = planned.plan.host.image, recipe.frames
        self._source, self.seen = source, 0

    @property
    def shape(self) -> VisualShape:
        """The grids that a method of site `tokens` sees.

        Raises:
            RecipeError: If the model answers no questions.
        """
        return self.planned(None).description.shape

    @property
    def encoder(self) -> EncoderParts:
        """The vision encoder."""
        encoder: EncoderParts = self.parts.encoder
        return encoder

    def views(self) -> Iterator[Tensor]:
        """Each view of each picture, f32 [1, 3, h_px, w_px].

        Raises:
            InputError: If there is no picture, or one cannot be read.
        """
        for _, pixels in self._scenes():
            yield from torch.split(pixels, 1)

    def pictures(self) -> Iterator[AskedPicture]:
        """Each picture with its first question.

        Raises:
            InputError: If there is no picture, or one cannot be read.
        """
        for scene, pixels in self._scenes():
            yield AskedPicture(self, pixels, scene.questions[0].prompt)

    def planned(self, tokens: int | None) -> VlmPlanned:
        """The plan of a prompt with so many visual tokens; None is all.

        Raises:
            RecipeError: If the model answers no questions.
        """
        if tokens not in self._planned:
            # Which method keeps them does not matter to a prompt.
            methods = () if tokens is None else (MethodChoice("random"),)
            recipe = replace(self._recipe, tokens=tokens, methods=methods)
            self._planned[tokens] = question_plan(recipe, self._checkpoint)
        return self._planned[tokens]

    def _scenes(self) -> Iterator[tuple[Example, Tensor]]:
        """Each scene and its views."""
        self.seen = 0
        for scene in scenes(self._source, self._frames):
            pixels = torch.from_numpy(images.views(list(scene.frames), self.image))
            self.seen += len(pixels)
            yield scene, pixels
        if not self.seen:
            raise InputError(
                f"'{self._source}' has no image to calibrate with; give a folder with images, those"
                " in folders inside it are not read"
            )


def calibrated_methods() -> dict[tuple[str, str], Callable[..., Calibrated]]:
    """The function `calibrate` of each method that has one, by name and site."""
    modules = {(n, s): METHODS.load(n, s) for n in METHODS.names() for s in METHODS.sites_of(n)}
    return {key: m.calibrate for key, m in modules.items() if hasattr(m, "calibrate")}


def calibrate_method(
    choice: MethodChoice, recipe: Recipe, source: str, progress: Callable[[str], None]
) -> MethodCalibration:
    """Find the options of a method on pictures.

    Args:
        choice: The method; its options are what its calibration asks for.
        recipe: The model, with the tiles and frames of its pictures; no methods.
        source: Pictures: N scenes of the embedded dataset, a folder, or a .jsonl file.
        progress: Called with a line for each step.

    Raises:
        RecipeError: If there is no such method, it has nothing to calibrate, or an option is not
            known, missing or wrong.
        PlanError: If what is asked for cannot work for this model.
        InputError: If there is no picture, or one cannot be read.
    """
    function = _function(choice)
    options = _options(choice, function)
    progress(f"open {recipe.model}")
    pictures = Pictures(recipe, source)
    if pictures.encoder.grid is not None:
        raise PlanError(
            f"calibration of '{choice.name}' runs an encoder's layers one by one, and those of"
            f" '{recipe.model}' take tables of the picture's grid, which it does not give them"
        )
    with torch.no_grad(), without_kernel_advice():
        found = function(pictures, progress, **options)
    result = replace(choice, options=tuple(found.options.items()))
    return MethodCalibration(recipe.model, str(result), source, pictures.seen, found.measured)


def _function(choice: MethodChoice) -> Callable[..., Calibrated]:
    """The method's function `calibrate`."""
    known = calibrated_methods()
    site = METHODS.site_of(choice.name, choice.site)
    if (choice.name, site) not in known:
        names = sorted(f"{name}@{where}" for name, where in known)
        raise RecipeError(
            f"method '{choice.name}' at site '{site}' has nothing to calibrate; methods that have:"
            f" {', '.join(names)}"
        )
    return known[choice.name, site]


def _options(choice: MethodChoice, function: Callable[..., Calibrated]) -> dict[str, OptionValue]:
    """The options of the choice, checked against the function's keywords."""
    keywords = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    options: dict[str, OptionValue] = {}
    for key, value in choice.options:
        name = key or next(iter(keywords))  # a value without a name is the first option's
        if name in options:
            raise RecipeError(f"calibration of '{choice.name}' has '{name}' twice; give it once")
        options[name] = value
    for name in options:
        if name not in keywords:
            raise RecipeError(
                f"calibration of '{choice.name}' has no option '{name}'; available:"
                f" {', '.join(keywords)}"
            )
    for name, parameter in keywords.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise RecipeError(
                f"calibration of '{choice.name}' needs '{name}', such as {choice.name}:{name}=N"
            )
    return options
