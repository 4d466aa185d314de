"""LFM2-VL (arXiv 2511.23404): SigLIP 2 NaFlex on one grid, 2x2 fold, LFM2 with short convolutions.

The published processor keeps a picture's shape: it takes the grid of patches that comes nearest to
it, and cuts a large picture into tiles beside a thumbnail of another grid. A static graph has one
grid, that of `--size`, to which a picture is stretched; the table of positions is interpolated to
it once, here.

Source: transformers' `models/lfm2_vl`. Limits: one view a picture, since tiles and their thumbnail
are views of two sizes; no clips.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.embedders import GridPatches
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import RESAMPLE, Description
from edgevlm.models.shared.encoders.naflex import packed, unpacked
from edgevlm.models.shared.folds import FoldedConnector, MeanFold
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_resized, normalization
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.models.shared.views import check_one_view
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
IMAGE, START, END = "<image>", "<|image_start|>", "<|image_end|>"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of an LFM2-VL checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, a size or a tower that the static form has not.
    """
    vision, fold = config.vision_config, config.downsample_factor
    check_one_view(recipe, config.model_type)
    if vision.model_type != "siglip2_vision_model":
        raise PlanError(f"vision tower '{vision.model_type}' is not supported, expected SigLIP 2")
    image = _image(vision, fold, processor, recipe)
    rows, columns = image.height // vision.patch_size, image.width // vision.patch_size
    side = rows // fold, columns // fold
    decoder = decoder_spec(config.text_config)
    items = (START, LayoutItem("visual", start=0, stop=side[0] * side[1]), END)
    return Description(
        image=image,
        view_tokens=side[0] * side[1],
        shape=VisualShape((side,), decoder.width, *image.tiling),
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
    """Options of the model's own processor for one view."""
    return {"do_image_splitting": False}


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor.

    It chooses a grid by the picture's shape: where that is another, it gets the picture at ours.
    """
    size = processor.encoder_patch_size
    for shown in (picture, picture.resize((image.width, image.height), processor.resample)):
        made = processor([shown], return_tensors="np", **processor_options(image))
        view = unpacked(made["pixel_values"], made["spatial_shapes"], size)
        if view.shape[2:] == (image.height, image.width):
            return view
    return None


def processor_stand_in(numbers: dict[str, Any]) -> Any:
    """What takes the place of the image processor where it cannot be loaded."""
    return SizesAlone(numbers)


class SizesAlone:
    """Says of pictures of one view what a processor writes into its text; makes no pixels.

    Args:
        numbers: The image processor's numbers.
    """

    def __init__(self, numbers: dict[str, Any]) -> None:
        self.use_thumbnail = numbers.get("use_thumbnail", True)
        self.tile_size = numbers.get("tile_size", 512)
        self.downsample_factor = numbers.get("downsample_factor", 2)
        self.encoder_patch_size = numbers.get("encoder_patch_size", 16)

    def fetch_images(self, images: Any) -> Any:
        """Pictures that are loaded already."""
        return images

    def __call__(self, images: Any, **options: Any) -> dict[str, Any]:
        sizes = [[one.height, one.width] for several in images for one in several]
        ones = [1] * len(sizes)
        return {"image_rows": ones, "image_cols": ones, "image_sizes": sizes}


def _image(vision: Any, fold: int, processor: dict[str, Any], recipe: Recipe) -> ImageSpec:
    """Preprocessing to the recipe's size, or to the largest square that the processor makes.

    Raises:
        PlanError: For a size that it does not make.
    """
    check_resized(processor)
    least, most = processor.get("min_image_tokens", 64), processor.get("max_image_tokens", 256)
    side = vision.patch_size * fold
    square = isqrt(most) * side
    height, width = recipe.size or (square, square)
    tokens = (height // side) * (width // side)
    if height % side or width % side or not least <= tokens <= most:
        raise PlanError(
            f"size {height}x{width} is none that the image processor makes: sides are multiples of"
            f" {side} pixels, and a picture has {least} to {most} tokens of {side}x{side}; give"
            f" such as {square}x{square}"
        )
    mean, std = normalization(processor, 0.5, 0.5)
    resample = RESAMPLE[processor.get("resample", 2)]
    return ImageSpec(height, width, 1, 1, "last", 1, resample, mean, std)
