"""Calibration of a method: options that are measured on pictures, by a function of its file.

A method that needs such options has, beside its class, a function

    calibrate(subject: Subject, progress: Callable[[str], None], *, KEY: TYPE, ...) -> Calibrated

whose keywords are what the user asks for, such as the patches that are left in the mean. It runs
modules of the model on pictures and returns options of the method. `edgevlm calibrate` calls it
(edgevlm/studies/calibration.py); which methods have one is read from their files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from edgevlm.bundle.host import ImageSpec
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.recipe import OptionValue


class Picture(Protocol):
    """A picture or clip with a question about it."""

    @property
    def views(self) -> Tensor:
        """Its views, f32 [P, 3, h_px, w_px]."""

    def last_state(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The language model's state of the last row of the question, f32 [C].

        Args:
            tokens: Visual tokens f32 [1, K, C].
            positions: Their positions among all, i32 [1, K], ascending.
        """


class Subject(Protocol):
    """A model without methods, and pictures to run it on.

    Attributes:
        parts: Its modules.
        image: Its preprocessing.
    """

    parts: ModelParts
    image: ImageSpec

    @property
    def shape(self) -> VisualShape:
        """The grids that a method of site `tokens` sees.

        Raises:
            RecipeError: If the model answers no questions.
        """

    @property
    def encoder(self) -> EncoderParts:
        """The vision encoder."""

    def views(self) -> Iterator[Tensor]:
        """Each view of each picture, f32 [1, 3, h_px, w_px]; anew with each call."""

    def pictures(self) -> Iterator[Picture]:
        """Each picture with its first question; anew with each call."""


@dataclass(frozen=True)
class Calibrated:
    """What a calibration gives.

    Attributes:
        options: Options of the method.
        measured: The figures behind them, by name; numbers, texts and lists of these.
    """

    options: dict[str, OptionValue]
    measured: dict[str, Any]
