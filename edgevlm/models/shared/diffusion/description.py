"""Numbers of a text-to-video family for one recipe, and what all families ask of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgevlm.bundle.kinds.diffusion import DenoiserShape
from edgevlm.errors import PlanError
from edgevlm.models.family import TextSpec
from edgevlm.recipe import Recipe, spell_pair

# Latents of a tile's side, and from one tile to the next: 256 and 192 pixels of a scale of 8, as
# diffusers' decoders have them.
TILE, STRIDE = 32, 24


@dataclass(frozen=True)
class DiffusionDescription:
    """A family's numbers of a pipeline, for one recipe.

    Attributes:
        text: The text encoder.
        denoiser: Sizes of the denoiser.
        tile: Height and width of a tile of the latents, and the strides down and across.
        scale: Pixels of a latent's side.
        frames: Frames of the video.
        height: Its pixels from top to bottom.
        width: Its pixels from left to right.
        fps: Frames that are shown in a second.
        steps: Steps from noise to latents.
        guidance: Factor of classifier-free guidance.
    """

    text: TextSpec
    denoiser: DenoiserShape
    tile: tuple[tuple[int, int], tuple[int, int]]
    scale: int
    frames: int
    height: int
    width: int
    fps: float
    steps: int
    guidance: float


def asked_frames(recipe: Recipe, defaults: dict[str, Any], temporal: int) -> int:
    """Frames of the video: the recipe's, or the pipeline's own where it asks for none.

    Args:
        recipe: What is asked for; 1 frame is none.
        defaults: The pipeline's own numbers.
        temporal: Frames of a latent frame but the first, which is of one.

    Raises:
        PlanError: If they make no whole latent frames; the message has the nearest that do.
    """
    frames = recipe.frames if recipe.frames > 1 else int(defaults["num_frames"])
    if (frames - 1) % temporal:
        below = (frames - 1) // temporal * temporal + 1
        raise PlanError(
            f"{frames} frames make no whole latent frames: one more than a multiple of {temporal}"
            f" is expected, such as {below} or {below + temporal}"
        )
    return frames


def asked_size(
    recipe: Recipe, defaults: dict[str, Any], down: int, across: int
) -> tuple[int, int]:
    """Height and width of the video: the recipe's, or the pipeline's own.

    Args:
        recipe: What is asked for.
        defaults: The pipeline's own numbers.
        down: Pixels of which the height is a multiple.
        across: The same of the width.

    Raises:
        PlanError: If they are no multiples; the message has the nearest that are.
    """
    size = recipe.size or (int(defaults["height"]), int(defaults["width"]))
    if size[0] % down or size[1] % across:
        near = (max(1, round(size[0] / down)) * down, max(1, round(size[1] / across)) * across)
        raise PlanError(
            f"{spell_pair(size)} pixels: height and width must be multiples of {down} and"
            f" {across}, such as {spell_pair(near)}"
        )
    return size


def tiled(latents: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Tile and stride for latents of a height and width."""
    tile = tuple(min(side, TILE) for side in latents)
    stride = tuple(side if side <= TILE else STRIDE for side in latents)
    return (tile[0], tile[1]), (stride[0], stride[1])
