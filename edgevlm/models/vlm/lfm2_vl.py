"""LFM2-VL (arXiv 2511.23404): SigLIP 2 NaFlex on one grid, 2x2 fold, LFM2 with short convolutions.

The published processor keeps a picture's shape: it takes the grid of patches that comes nearest to
it, and cuts a large picture into square tiles before a thumbnail of the picture's shape. A static
graph has one grid, that of `--size`, to which a picture is stretched, or that of a tile; the table
of positions is interpolated to it once, here.

Source: transformers' `models/lfm2_vl`. Limits: as many rows of tiles as columns, of which the
thumbnail is square, too; no clips.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.embedders import GridPatches
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.naflex import packed, unpacked
from edgevlm.models.shared.folds import FoldedConnector, MeanFold
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_resized
from edgevlm.models.shared.tiles.marked import marked_tiles, view_item
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.models.shared.views import check_still, image_of
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
IMAGE, START, END = "<image>", "<|image_start|>", "<|image_end|>"
TILE, THUMBNAIL = "<|img_row_{row}_col_{column}|>", "<|img_thumbnail|>"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of an LFM2-VL checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, a size or a tower that the static form has not.
    """
    vision, fold = config.vision_config, config.downsample_factor
    check_still(recipe, config.model_type)
    if vision.model_type != "siglip2_vision_model":
        raise PlanError(f"vision tower '{vision.model_type}' is not supported, expected SigLIP 2")
    image = _image(vision, fold, processor, recipe)
    rows, columns = image.height // vision.patch_size, image.width // vision.patch_size
    side = rows // fold, columns // fold
    decoder, count = decoder_spec(config.text_config), side[0] * side[1]
    tiles = [*marked_tiles(image, count, TILE), THUMBNAIL] if image.views > 1 else []
    items = (START, *tiles, view_item(image.views - 1, count), END)
    return Description(
        image=image,
        view_tokens=count,
        shape=VisualShape((side,) * image.views, decoder.width, *image.tiling),
        encoder=encoder_spec(vision, vision.num_hidden_layers, rows * columns),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=IMAGE,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, image = model.model, description.image
    tower, own = core.vision_tower, core.multi_modal_projector
    embeddings, fold = tower.embeddings, own.factor
    size, table = embeddings.position_embedding_size, embeddings.position_embedding.weight
    grid = image.height // embeddings.patch_size, image.width // embeddings.patch_size
    positions = embeddings.resize_positional_embeddings(
        table.detach().reshape(size, size, -1), torch.tensor([grid]), grid[0] * grid[1]
    )[0]
    norm = own.layer_norm if own.use_layer_norm else nn.Identity()
    projector = nn.Sequential(norm, own.linear_1, own.act, own.linear_2)
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=GridPatches(embeddings.patch_embedding, positions, embeddings.patch_size),
            layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
            connector=FoldedConnector(tower.post_layernorm, projector, fold, grid, False),
            fold=MeanFold(fold, grid),
        ),
        pack=nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def left_out(config: Any, all_layers: bool) -> tuple[str, ...]:
    """Weights of the tower that no token needs: its head."""
    return ("model.vision_tower.head.",)


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [P, 3, h_px, w_px] -> [1, P*N, C]."""
    inputs = packed(pixel_values, model.config.vision_config.patch_size)
    return torch.cat(model.get_image_features(**inputs, return_dict=True).pooler_output)[None]


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


def _image(vision: Any, fold: int, processor: dict[str, Any], recipe: Recipe) -> ImageSpec:
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
