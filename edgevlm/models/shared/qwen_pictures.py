"""Pictures and prompts of the Qwen-VL line, and their encoders' input.

A picture is stretched to the one size of the bundle, where the original keeps its shape and chooses
a size by it. In the text it stands between two marks as a grid of tokens.

Source: transformers' `models/qwen2_vl/image_processing_pil_qwen2_vl.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from edgevlm.bundle.host import ImageSpec, LayoutItem, raster
from edgevlm.errors import PlanError
from edgevlm.models.shared.preprocessing import check_resized
from edgevlm.models.shared.views import one_size
from edgevlm.recipe import Recipe

MOST_RATIO = 200  # of a picture's sides, that of the originals' `smart_resize`


@dataclass(frozen=True)
class Marks:
    """Tokens of the text that stand for a picture: one for each visual token, and those around.

    `image` is the token where the checkpoint names no other.
    """

    image: str = "<|image_pad|>"
    start: str = "<|vision_start|>"
    end: str = "<|vision_end|>"


def image_spec(
    vision: Any, processor: dict[str, Any], recipe: Recipe, default: tuple[int, int], multiple: int,
    mean: Any, std: Any, counted: int = 1,
) -> ImageSpec:  # fmt: skip
    """Preprocessing to the recipe's size.

    Args:
        vision: transformers' vision config.
        processor: The image processor's numbers.
        recipe: What is asked for.
        default: Height and width where the recipe names none.
        multiple: What sides must be multiples of, in pixels.
        mean: Mean where the processor names none.
        std: Deviation where it names none.
        counted: How often its bounds count a pixel.

    Raises:
        PlanError: For a clip, tiles, a size or a processor that has no static form.
    """
    height, width = recipe.size or default
    if max(height, width) > MOST_RATIO * min(height, width):
        raise PlanError(
            f"size {height}x{width} has one side more than {MOST_RATIO} times the other, which the"
            f" image processor refuses; give such as {default[0]}x{default[1]}"
        )
    image = one_size(processor, recipe, default, multiple, mean, std)
    _check_processor(vision, processor, height * width * counted)
    return image


def image_items(rows: int, columns: int, marks: Marks) -> tuple[str | LayoutItem, ...]:
    """The sequence of one picture of so many tokens, between its marks."""
    places, span = raster(1, rows, columns), max(rows, columns)
    tokens = LayoutItem("visual", start=0, stop=rows * columns, places=places, span=span)
    return (marks.start, tokens, marks.end)


def sized_inputs(processor: Any, picture: Image.Image, image: ImageSpec) -> tuple[Any, int, int]:
    """The patches of a view that the model's own processor makes, their rows and columns.

    It chooses a size by the picture's shape: where that is another, it gets the picture at ours.
    """
    inputs = processor([picture], return_tensors="np")
    side = processor.patch_size
    sides = [1, image.height // side, image.width // side]
    if inputs["image_grid_thw"].tolist() != [sides]:
        resized = picture.resize((image.width, image.height), processor.resample)
        inputs = processor([resized], return_tensors="np")
    return inputs["pixel_values"], sides[1], sides[2]


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor."""
    patches, rows, columns = sized_inputs(processor, picture, image)
    m, side = processor.merge_size, processor.patch_size
    patches = patches.reshape(rows // m, columns // m, m, m, 3, -1, side, side)
    return (
        patches[..., 0, :, :]
        .transpose(4, 0, 2, 5, 1, 3, 6)
        .reshape(1, 3, image.height, image.width)
    )


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """None: a picture of the size keeps it."""
    return {}


def as_patches(pixel_values: Tensor, vision: Any) -> tuple[Tensor, Tensor]:
    """A view [1, 3, h_px, w_px] as the original takes it: patches of a frame twice, and their grid.

    Returns:
        f32 [N, 3 * frames * side * side] in blocks, and i64 [1, 3].
    """
    side, m, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    rows, columns = pixel_values.shape[2] // side, pixel_values.shape[3] // side
    cut = pixel_values[0].reshape(3, rows // m, m, side, columns // m, m, side)
    cut = cut.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)  # [h, w, m, m, 3, 1, side, side]
    patches = cut.expand(*cut.shape[:5], frames, side, side).reshape(rows * columns, -1)
    return patches, torch.tensor([[1, rows, columns]])


def _check_processor(vision: Any, processor: dict[str, Any], pixels: int) -> None:
    """Refuse a processor that cuts other patches than the encoder reads, or keeps no such size."""
    check_resized(processor)
    wanted = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": getattr(vision, "temporal_patch_size", 1),
        "merge_size": vision.spatial_merge_size,
    }
    for key, value in wanted.items():
        if not isinstance(value, int) or processor.get(key, value) != value:
            raise PlanError(
                f"the image processor's {key} is {processor.get(key)}, the encoder's {value};"
                " correct preprocessor_config.json"
            )
    size = processor.get("size")
    size = size if isinstance(size, dict) else {}
    least = processor.get("min_pixels") or size.get("shortest_edge") or pixels
    most = processor.get("max_pixels") or size.get("longest_edge") or pixels
    if not least <= pixels <= most:
        raise PlanError(
            f"a size of {pixels} pixels is outside of what the image processor keeps, {least} to"
            f" {most} pixels; give another --size"
        )
