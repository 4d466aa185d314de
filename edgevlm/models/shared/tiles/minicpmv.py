"""Pictures of MiniCPM-V 4.6 and 4.7: an overview, and slices of it between marks of their own.

A picture is one view of `--size`, or, with `--tiles` RxR, an overview of that size followed by as
large slices, row by row. The published processor keeps a picture's shape, so that an overview has
the shape of the picture and a slice that of a cell: they are one size where there are as many rows
as columns, and a static graph has one size.

On the canvas of 4.7 a token of the overview and one of a slice that show the same place have the
same position, and marks have places around them; of 4.6 positions count up. A clip is a view of
each frame, one behind the other, each with a canvas of its own; only 4.6 puts a number in front.

Source: transformers' `models/minicpmv4_6/image_processing_pil_minicpmv4_6.py` and
`processing_minicpmv4_6.py`, `models/minicpmv4_7/modular_minicpmv4_7.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log, sqrt
from typing import Any

import torch
from PIL import Image
from torch import nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.parts import DecoderSpec, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.minicpmv import (
    check_folds,
    encoder_parts,
    encoder_spec,
    side_of_token,
)
from edgevlm.models.shared.llama import decoder_parts
from edgevlm.models.shared.preprocessing import check_resized
from edgevlm.models.shared.views import image_of
from edgevlm.recipe import Recipe

# What its tokenizers call them; a plan compares the prompt with the checkpoint's own processor.
MARKS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
START, END = "<image>", "</image>"
SLICE, SLICE_END, LINE = "<slice>", "</slice>", "\n"
NUMBER = ("<image_id>", LayoutItem("number"), "</image_id>")
SCALE = 448  # pixels: a view is brought to as many as a square of this side has
SLICES = 9


def describe(
    config: Any, processor: dict[str, Any], recipe: Recipe, decoder: DecoderSpec,
    canvas: Sequence[int] | None = None,
) -> Description:  # fmt: skip
    """Numbers of a checkpoint; see `Description`.

    Args:
        config: transformers' config.
        processor: The image processor's numbers.
        recipe: What is asked for.
        decoder: Numbers of the language decoder.
        canvas: Where positions are those of a canvas, ids that join it behind the last mark.

    Raises:
        PlanError: For a grid of slices, a size, a mode or a processor that the static form has not.
    """
    clip = recipe.frames > 1
    numbers = (processor.get("video_processor") if clip else None) or processor
    check_folds(config, numbers)
    if clip and numbers.get("stack_frames", 1) != 1:
        raise PlanError(
            f"the video processor's stack_frames is {numbers['stack_frames']}: it joins frames of a"
            " second to one picture, which a bundle does not; set 1 in"
            " video_preprocessor_config.json"
        )
    vision, image = config.vision_config, image_spec(config, numbers, recipe)
    rows, columns = (side // vision.patch_size for side in (image.height, image.width))
    fold = side_of_token(config)
    tokens = rows // fold, columns // fold
    items = canvas_items(image, tokens, canvas or ())
    shown = items if canvas is not None else without_places(items)
    counts = processor.get("use_image_id", True) and not (clip and canvas is not None)
    numbered = (*(NUMBER if counts else ()), *shown)
    kind = image.subject
    mark = processor.get(f"{kind}_token", MARKS[kind])
    return Description(
        image=image,
        view_tokens=tokens[0] * tokens[1],
        shape=VisualShape((tokens,) * image.views, decoder.width, *image.tiling),
        encoder=encoder_spec(config, rows * columns),
        decoder=decoder,
        full_image=numbered,
        reduced_image=numbered,
        placeholder=mark,
        visual_token=mark,
        content_type=kind,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, image, side = model.model, description.image, model.config.vision_config.patch_size
    return ModelParts(
        encoder=encoder_parts(
            core, description.encoder, (image.height // side, image.width // side)
        ),
        pack=nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """Options of the model's own processor: a picture of the grid's size is cut so."""
    slices = image.rows * image.columns
    return {"slice_mode": True, "max_slice_nums": slices} if slices > 1 else {"slice_mode": False}


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The views f32 [P, 3, h_px, w_px] of the model's own processor.

    It chooses sizes by the picture's shape: where they are others, it gets the picture at ours.
    """
    side, options = processor.patch_size, processor_options(image)
    grid = [image.height // side, image.width // side]
    inputs = processor([picture], return_tensors="np", **options)
    if inputs["target_sizes"].tolist() != [grid] * image.views:
        size = image.columns * image.width, image.rows * image.height
        resized = picture.resize(size, processor.resample)
        inputs = processor([resized], return_tensors="np", **options)
    patches = inputs["pixel_values"].reshape(3, side, image.views, *grid, side)
    return patches.transpose(2, 0, 3, 1, 4, 5).reshape(image.views, 3, image.height, image.width)


def canvas_items(
    image: ImageSpec, tokens: tuple[int, int], joins: Sequence[int]
) -> tuple[LayoutItem, ...]:
    """The sequence of one picture, its marks and tokens on a canvas, or of each frame of a clip.

    The canvas has the tokens of all slices, or, without any, those of the overview, which otherwise
    is spread over it.

    Args:
        image: Its views.
        tokens: Rows and columns of tokens of a view.
        joins: Ids that stand on the canvas, too, where text goes on with them.
    """
    if image.frames > 1:
        frame = canvas_items(replace(image, frames=1), tokens, joins)
        return tuple(_of_view(item, n) for n in range(image.frames) for item in frame)
    (high, wide), sliced = tokens, image.views > 1
    height, width = image.rows * high, image.columns * wide
    first = visual(0, tokens, spread(height, high), spread(width, wide))
    items = [at(START, -1, -1), first, at(END, height, width)]
    for index in range(image.rows * image.columns if sliced else 0):
        row, column = divmod(index, image.columns)
        top, left = row * high, column * wide
        if row and not column:
            items.append(at(LINE, top - 1, width))
        places = range(top, top + high), range(left, left + wide)
        items += [at(SLICE, top, left), visual(index + 1, tokens, *places)]
        items.append(at(SLICE_END, top + high - 1, left + wide - 1))
    items[-1] = replace(items[-1], span=max(height, width) + 1, joins=tuple(joins))
    return tuple(items)


def _of_view(item: LayoutItem, view: int) -> LayoutItem:
    """An item of the first view, as that of another."""
    if item.kind != "visual":
        return item
    return replace(item, start=view * item.stop, stop=(view + 1) * item.stop)


def without_places(items: Sequence[LayoutItem]) -> tuple[str | LayoutItem, ...]:
    """The same sequence where positions count up."""
    return tuple(item.prefix if item.kind == "text" else replace(item, places=()) for item in items)


def at(text: str, row: int, column: int) -> LayoutItem:
    """A mark at a place of the canvas."""
    return LayoutItem("text", prefix=text, places=((0,), (row,), (column,)))


def visual(
    view: int, tokens: tuple[int, int], rows: Sequence[int], columns: Sequence[int]
) -> LayoutItem:
    """The tokens of a view, whose rows and columns lie there on the canvas."""
    count, places = tokens[0] * tokens[1], ((0,), tuple(rows), tuple(columns))
    return LayoutItem("visual", start=view * count, stop=(view + 1) * count, places=places)


def spread(side: int, tokens: int) -> list[int]:
    """Places of so many tokens on a side of the canvas, from end to end."""
    return torch.linspace(0, side - 1, tokens, device="cpu").round().long().tolist()


def image_spec(config: Any, processor: dict[str, Any], recipe: Recipe) -> ImageSpec:
    """Preprocessing to the recipe's size and grid of slices.

    Raises:
        PlanError: If the processor never makes that of a picture.
    """
    check_resized(processor)
    patch, scale = config.vision_config.patch_size, processor.get("scale_resolution", SCALE)
    if processor.get("patch_size", patch) != patch:
        raise PlanError(
            f"the image processor's patch_size is {processor['patch_size']}, the encoder's {patch};"
            " correct preprocessor_config.json"
        )
    step = patch * side_of_token(config)
    height, width = recipe.size or _size(1.0, scale, step)
    if (height, width) != (kept := _size(width / height, scale, step)):
        raise PlanError(
            f"size {height}x{width} is none that the image processor makes of a picture: it makes"
            f" {kept[0]}x{kept[1]} of this shape; give --size {kept[0]}x{kept[1]}"
        )
    _check_slices(recipe.tiles, width / height, processor.get("max_slice_nums", SLICES))
    if recipe.tiles != (1, 1) and not processor.get("slice_mode", True):
        raise PlanError(
            "the image processor has slice_mode false, and writes no slices into a prompt; set"
            " slice_mode true in preprocessor_config.json, or leave out --tiles"
        )
    return image_of(processor, recipe, (height, width), "first", 0.5, 0.5)


def _check_slices(tiles: tuple[int, int], shape: float, most: int) -> None:
    """Refuse a grid that the processor makes of no picture of which all views are of one size."""
    (rows, columns), slices, side = tiles, tiles[0] * tiles[1], min(max(tiles), int(sqrt(most)))
    if rows != columns:
        raise PlanError(
            f"tiles {rows}x{columns}: of a picture that the image processor cuts so, the overview"
            " has another shape than the slices, and a static graph has one; give as many rows as"
            f" columns, such as {side}x{side}"
        )
    if slices > max(most, 1):
        raise PlanError(
            f"tiles {rows}x{columns} are more slices than the image processor makes, {most};"
            f" give {side}x{side}"
        )
    counts = [count for count in (slices - 1, slices) if count > 1]
    grids = [(n, count // n) for count in counts for n in range(1, count + 1) if count % n == 0]
    chosen = min(grids, key=lambda grid: abs(log(shape * grid[0] / grid[1])), default=tiles)
    if chosen != tiles:
        raise PlanError(
            f"tiles {rows}x{columns}: a picture of the shape of --size is cut {chosen[0]}x"
            f"{chosen[1]} by the image processor; give a size that is nearer to a square"
        )


def _size(shape: float, scale: int, step: int) -> tuple[int, int]:
    """Height and width that the processor gives to a picture of a shape (width / height)."""
    height = int(scale / sqrt(shape))
    sides = height, int(height * shape)
    return max(round(sides[0] / step), 1) * step, max(round(sides[1] / step), 1) * step
