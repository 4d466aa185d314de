"""Pictures of LFM2-VL: one view, or square tiles before a thumbnail, and their own processor.

Source: transformers' `models/lfm2_vl/image_processing_lfm2_vl.py` and `processing_lfm2_vl.py`.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

from PIL import Image

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.models.shared.encoders.naflex import unpacked
from edgevlm.models.shared.preprocessing import check_resized
from edgevlm.models.shared.tiles.marked import marked_tiles, view_item
from edgevlm.models.shared.views import image_of
from edgevlm.recipe import Recipe

IMAGE, START, END = "<image>", "<|image_start|>", "<|image_end|>"
TILE, THUMBNAIL = "<|img_row_{row}_col_{column}|>", "<|img_thumbnail|>"


def image_items(image: ImageSpec, tokens: int) -> tuple[str | LayoutItem, ...]:
    """The sequence of one picture, whose views have so many tokens."""
    tiles = [*marked_tiles(image, tokens, TILE), THUMBNAIL] if image.views > 1 else []
    return (START, *tiles, view_item(image.views - 1, tokens), END)


def image_spec(vision: Any, fold: int, processor: dict[str, Any], recipe: Recipe) -> ImageSpec:
    """Preprocessing to the recipe's size and tiles, or to the largest square that is made.

    Raises:
        PlanError: For a size or tiles that the processor does not make.
    """
    check_resized(processor)
    least, most = processor.get("min_image_tokens", 64), processor.get("max_image_tokens", 256)
    side = vision.patch_size * fold
    square = isqrt(most) * side
    height, width = recipe.size or (square, square)
    if recipe.tiles != (1, 1):
        _check_tiles(recipe, processor, square, (height, width))
    tokens = (height // side) * (width // side)
    if height % side or width % side or not least <= tokens <= most:
        raise PlanError(
            f"size {height}x{width} is none that the image processor makes: sides are multiples of"
            f" {side} pixels, and a picture has {least} to {most} tokens of {side}x{side}; give"
            f" such as {square}x{square}"
        )
    return image_of(processor, recipe, (height, width), "last", 0.5, 0.5, resample=2)


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """Options of the model's own processor for this grid: the picture's shape does the rest."""
    tiles = image.rows * image.columns
    cut = {"min_tiles": tiles, "max_tiles": tiles} if tiles > 1 else {}
    return {"do_image_splitting": tiles > 1} | cut


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The views f32 [P, 3, h_px, w_px] of the model's own processor.

    It chooses a grid by the picture's shape: where that is another, it gets the picture at ours.
    """
    patch, size = processor.encoder_patch_size, (image.height, image.width)
    whole = image.columns * image.width, image.rows * image.height
    for shown in (picture, picture.resize(whole, processor.resample)):
        made = processor([shown], return_tensors="np", **processor_options(image))
        views = unpacked(made["pixel_values"], made["spatial_shapes"], patch)
        if views is not None and views.shape == (image.views, 3, *size):
            return views
    return None


def processor_stand_in(numbers: dict[str, Any]) -> Any:
    """What takes the place of the image processor where it cannot be loaded."""
    return SizesAlone(numbers)


class SizesAlone:
    """Says of pictures of a grid's size what a processor writes into its text; makes no pixels.

    Args:
        numbers: The image processor's numbers.
    """

    def __init__(self, numbers: dict[str, Any]) -> None:
        self.do_image_splitting = numbers.get("do_image_splitting", True)
        self.use_thumbnail = numbers.get("use_thumbnail", True)
        self.tile_size = numbers.get("tile_size", 512)
        self.downsample_factor = numbers.get("downsample_factor", 2)
        self.encoder_patch_size = numbers.get("encoder_patch_size", 16)

    def fetch_images(self, images: Any) -> Any:
        """Pictures that are loaded already."""
        return images

    def __call__(self, images: Any, **options: Any) -> dict[str, Any]:
        pictures = [one for several in images for one in several]
        # A picture that is cut is square, and its thumbnail as large as a tile.
        side = self.tile_size if self.do_image_splitting else 0
        rows = [one.height // side if side else 1 for one in pictures]
        columns = [one.width // side if side else 1 for one in pictures]
        sizes = [[side or one.height, side or one.width] for one in pictures]
        return {"image_rows": rows, "image_cols": columns, "image_sizes": sizes}


def _check_tiles(
    recipe: Recipe, processor: dict[str, Any], square: int, size: tuple[int, int]
) -> None:
    """Refuse tiles that the processor never cuts, or whose thumbnail has another size.

    Args:
        recipe: What is asked for.
        processor: The image processor's numbers.
        square: Pixels of a side of a square thumbnail.
        size: Height and width of a view.

    Raises:
        PlanError: Saying what to give instead.
    """
    (rows, columns), tile = recipe.tiles, processor.get("tile_size", 512)
    least, most = processor.get("min_tiles", 2), processor.get("max_tiles", 10)
    near = min(max(rows, columns), isqrt(most))
    given = f"tiles {rows}x{columns}"
    if rows != columns or not least <= rows * columns <= most:
        raise PlanError(
            f"{given}: the image processor cuts {least} to {most} tiles, and a thumbnail beside"
            " them has the shape of the picture, so that all views have one size where there are"
            f" as many rows as columns; give {near}x{near}"
        )
    if not processor.get("use_thumbnail", True):
        raise PlanError(
            f"{given}: the image processor has use_thumbnail false, and a bundle shows the whole"
            " picture beside its tiles; set use_thumbnail true in preprocessor_config.json"
        )
    if not size == (tile, tile) == (square, square):
        raise PlanError(
            f"{given}: the image processor makes tiles of {tile}x{tile} pixels and a thumbnail of"
            f" {square}x{square}, got a size of {size[0]}x{size[1]}; leave out --size, and set"
            " tile_size and max_image_tokens so that both are one"
        )
