"""Pictures, clips and prompts of the Qwen-VL line, and their encoders' input.

A picture is stretched to the one size of the bundle, where the original keeps its shape and chooses
a size by it. In the text it stands between two marks as a grid of tokens. A clip is groups of
frames, two unless the encoder has others, of which each is a view and a grid; the last frame is
repeated where a group lacks one.

Sources: transformers' `models/qwen2_vl/image_processing_pil_qwen2_vl.py` and
`video_processing_qwen2_vl.py`; how clips are written, `processing_NAME.py` of each family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from edgevlm.bundle.checks import MOST_RATE
from edgevlm.bundle.host import ImageSpec, LayoutItem, raster
from edgevlm.errors import PlanError
from edgevlm.models.documents import NUMBERS
from edgevlm.models.shared.preprocessing import check_resized
from edgevlm.models.shared.views import one_size
from edgevlm.recipe import Recipe

MOST_RATIO = 200  # of a picture's sides, that of the originals' `smart_resize`
Items = tuple[str | LayoutItem, ...]


@dataclass(frozen=True)
class Marks:
    """Tokens of the text that stand for a picture or a clip.

    Attributes:
        image: One for each visual token, where the checkpoint names no other.
        start: In front of them.
        end: Behind them.
        video: `image` of a clip.
        video_start: What the chat template writes in front of a clip.
        video_end: And behind it.
    """

    image: str = "<|image_pad|>"
    start: str = "<|vision_start|>"
    end: str = "<|vision_end|>"
    video: str = "<|video_pad|>"
    video_start: str = "<|vision_start|>"
    video_end: str = "<|vision_end|>"


@dataclass(frozen=True)
class Clips:
    """How a family takes clips.

    Attributes:
        items: The sequence of a clip: of transformers' vision config, the preprocessing, the grid
            of tokens of a group, and the marks.
        counts_frames: Whether the bounds of the video processor are those of all frames together.
        as_images: Whether the processor writes the picture's token for each visual token.
    """

    items: Callable[[Any, ImageSpec, tuple[int, int], Marks], Items]
    counts_frames: bool = True
    as_images: bool = False


def image_spec(
    vision: Any, processor: dict[str, Any], recipe: Recipe, default: tuple[int, int], multiple: int,
    mean: Any, std: Any, counted: int = 1,
) -> ImageSpec:  # fmt: skip
    """Preprocessing of a picture to the recipe's size.

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
    image = _sized(processor, recipe, default, multiple, mean, std)
    _check_processor("image", vision, processor, image.height * image.width * counted)
    return image


def clip_spec(
    vision: Any, processor: dict[str, Any], recipe: Recipe, default: tuple[int, int], multiple: int,
    mean: Any, std: Any, counts_frames: bool,
) -> ImageSpec:  # fmt: skip
    """The same of a clip, by the numbers of the video processor.

    Raises:
        PlanError: For a size, a number of frames or a processor that has no static form.
    """
    numbers, frames = processor.get("video_processor") or processor, recipe.frames
    depth = vision.temporal_patch_size
    if not isinstance(depth, int) or frames < depth:
        raise PlanError(
            f"a clip of {frames} frames is less than the {depth} that the encoder takes together;"
            " give more --frames"
        )
    # As the originals count them: of three frames, two or four.
    counted = round(frames / depth) * depth if counts_frames else 1
    image = _sized(numbers, replace(recipe, frames=1), default, multiple, mean, std)
    _check_processor("video", vision, numbers, image.height * image.width * counted)
    return replace(image, frames=frames, depth=depth)


def image_items(rows: int, columns: int, marks: Marks) -> Items:
    """The sequence of one picture of so many tokens, between its marks."""
    return (marks.start, _grid_item(0, rows, columns), marks.end)


def spaced_clip(vision: Any, image: ImageSpec, grid: tuple[int, int], marks: Marks) -> Items:
    """A clip between two marks, whose groups are as far apart as the time between them.

    Raises:
        PlanError: If a second has no number of positions, or more than a bundle says.
    """
    places, rate = raster(image.views, *grid), float(vision.tokens_per_second)
    if not 0 < rate <= MOST_RATE:
        raise PlanError(
            f"tokens_per_second of vision_config is {rate:g}, expected a number above 0,"
            f" {MOST_RATE} at most; correct config.json"
        )
    stop = image.views * grid[0] * grid[1]
    tokens = LayoutItem("visual", stop=stop, places=places, span=max(grid), per_second=rate)
    return (marks.video_start, tokens, marks.video_end)


def timed_clip(vision: Any, image: ImageSpec, grid: tuple[int, int], marks: Marks) -> Items:
    """A clip whose groups are pictures, with the middle of the times of their frames before each.

    Its marks stand around all of them: transformers 5.24 writes so.
    """

    def told(picture: Items, start: int, stop: int) -> Items:
        time = LayoutItem("seconds", start=start, stop=stop, prefix="<", suffix=" seconds>")
        return time, *picture

    return _told_clip(image, grid, marks, told)


def captioned_clip(vision: Any, image: ImageSpec, grid: tuple[int, int], marks: Marks) -> Items:
    """A clip whose groups are pictures, with the time of the first frame behind each."""

    def told(picture: Items, start: int, stop: int) -> Items:
        time = LayoutItem("seconds", start=start, stop=start + 1, suffix=" seconds")
        return *picture, time

    return _told_clip(image, grid, marks, told)


def _told_clip(
    image: ImageSpec, grid: tuple[int, int], marks: Marks, told: Callable[[Items, int, int], Items]
) -> Items:
    """A clip between its marks; `told` adds a time to the picture of the frames [start, stop)."""
    items: Items = ()
    for group, start in enumerate(range(0, image.frames, image.depth)):
        picture = (marks.start, _grid_item(group, *grid), marks.end)
        items += told(picture, start, min(start + image.depth, image.frames))
    return (marks.video_start, *items, marks.video_end)


def _grid_item(group: int, rows: int, columns: int) -> LayoutItem:
    """The visual tokens of a picture, or of a group of a clip."""
    count, places = rows * columns, raster(1, rows, columns)
    start, stop = group * count, (group + 1) * count
    return LayoutItem("visual", start=start, stop=stop, places=places, span=max(rows, columns))


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
    """Views [P, 3 * depth, h_px, w_px] as the original takes them: patches, and their grid.

    A picture is a group of its frame as often as the encoder takes frames.

    Returns:
        f32 [P * N, 3 * frames * side * side] in blocks, and i64 [1, 3].
    """
    side, m, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    views, _, height, width = pixel_values.shape
    rows, columns = height // side, width // side
    pixels = pixel_values.reshape(views, -1, 3, height, width).expand(-1, frames, -1, -1, -1)
    cut = pixels.reshape(views, frames, 3, rows // m, m, side, columns // m, m, side)
    cut = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # [P, h, w, m, m, 3, frames, side, side]
    return cut.reshape(views * rows * columns, -1), torch.tensor([[views, rows, columns]])


def _sized(
    processor: dict[str, Any], recipe: Recipe, default: tuple[int, int], multiple: int,
    mean: Any, std: Any,
) -> ImageSpec:  # fmt: skip
    """A view of the recipe's size, of a shape that the processors take."""
    height, width = recipe.size or default
    if max(height, width) > MOST_RATIO * min(height, width):
        raise PlanError(
            f"size {height}x{width} has one side more than {MOST_RATIO} times the other, which the"
            f" image processor refuses; give such as {default[0]}x{default[1]}"
        )
    return one_size(processor, recipe, default, multiple, mean, std)


def _check_processor(of: str, vision: Any, processor: dict[str, Any], pixels: int) -> None:
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
                f"the {of} processor's {key} is {processor.get(key)}, the encoder's {value};"
                f" correct {NUMBERS[of]}"
            )
    size = processor.get("size")
    size = size if isinstance(size, dict) else {}
    least = processor.get("min_pixels") or size.get("shortest_edge") or pixels
    most = processor.get("max_pixels") or size.get("longest_edge") or pixels
    if not least <= pixels <= most:
        raise PlanError(
            f"a size of {pixels} pixels is outside of what the {of} processor keeps, {least} to"
            f" {most} pixels; give another --size"
        )
