"""LLaVA-OneVision (arXiv 2408.03326): SigLIP encoder, two-layer projector, Qwen2.

One view is the base image; R x C is the base image followed by one grid of R*C tiles in raster
order over all tiles, as AnyRes packs it, each row closed by the learned newline (an extra row of
the embedding table). Frames of a clip are pooled 2x2 bilinearly and closed by one newline.
Differences from the original: the grid is fixed by the recipe and the picture fills it without
padding, so nothing is unpadded; when tokens are removed one newline at the end remains, unless the
method keeps rows.
"""

from __future__ import annotations

import copy
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import EncoderLayer, PatchEmbedding
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.anyres import (
    NEWLINE,
    Pack,
    base_and_tile,
    image_spec,
    newline_row,
    newline_rows,
    processor_options,
    processor_views,
    without_newlines,
)
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.towers import encoder_spec, left_out, selected_layers
from edgevlm.recipe import Recipe

__all__ = [
    "AUTO_CLASS",
    "KIND",
    "describe",
    "left_out",
    "parts",
    "processor_options",
    "processor_views",
    "reference_features",
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a LLaVA-OneVision checkpoint; see `Description`.

    Raises:
        PlanError: For a feature layer, a selection, a tile grid or a decoder that the static form
            has not.
    """
    vision, (rows, columns) = config.vision_config, recipe.tiles
    _check(config, rows, columns)
    image = image_spec(config, processor, recipe, 0.5, 0.5)
    patches = side = vision.image_size // vision.patch_size
    clip = recipe.frames > 1
    content = "video" if clip else "image"
    if clip:
        side = ceil(side / 2)
        grids: tuple[tuple[int, int], ...] = ((side, side),) * recipe.frames
    else:
        grids = ((side, side),) + (((rows * side, columns * side),) if image.views > 1 else ())
    decoder = decoder_spec(config.text_config)
    shape = VisualShape(grids, decoder.width, *image.tiling)
    flat: tuple[str | LayoutItem, ...] = (LayoutItem("visual", start=0, stop=shape.tokens), NEWLINE)
    return Description(
        image=image,
        view_tokens=side * side,
        shape=shape,
        encoder=encoder_spec(vision, selected_layers(config), patches**2),
        decoder=decoder,
        full_image=flat if clip or image.views == 1 else newline_rows(side, rows, columns),
        reduced_image=flat,
        placeholder=processor.get(f"{content}_token", f"<{content}>"),
        content_type=content,
        processor_tokens=base_and_tile(side) if image.views == 1 else 0,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, vision, image = model.model, model.config.vision_config, description.image
    tower, embeddings = core.vision_tower, core.vision_tower.embeddings
    layers = tuple(EncoderLayer(layer) for layer in tower.encoder.layers)
    used = description.encoder.layers
    side = vision.image_size // vision.patch_size
    pool = Pool(side) if image.frames > 1 else nn.Identity()
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=PatchEmbedding(embeddings.patch_embedding, embeddings.position_embedding),
            layers=layers[:used],
            connector=nn.Sequential(core.multi_modal_projector, pool),
            # A copy: a buffer that two modules share has one name only, and a trace may take the
            # other.
            fold=copy.deepcopy(pool),
            after=layers[used:],
        ),
        pack=Pack(image.rows, image.columns, side) if image.views > image.frames else nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight, newline_row(core, description.decoder)),
        head=model.lm_head.weight,
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder and packing, newlines left out: [P, 3, h_px, w_px] -> [1, N, C]."""
    core, image = model.model, description.image
    if image.frames > 1:
        clip = core.get_video_features(pixel_values[None], return_dict=True).pooler_output
        return clip[:, :-1]
    if image.views == 1:  # as with several images: no AnyRes tiles
        states = core.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        return core.multi_modal_projector(states[description.encoder.layers])
    size = torch.tensor([[image.rows * image.height, image.columns * image.width]])
    one = torch.tensor([1])
    packed = core.get_image_features(
        pixel_values[None], size, batch_num_images=one, return_dict=True
    )
    side = image.height // model.config.vision_config.patch_size
    return without_newlines(packed.pooler_output[0], image, side)


class Pool(nn.Module):
    """Bilinear halving of a token grid as one matrix: [1, h*w, C] -> [1, ceil(h/2)^2, C]."""

    matrix: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        with torch.device("cpu"):
            rows = torch.eye(side * side).reshape(side * side, 1, side, side)
            half = [ceil(side / 2)] * 2
            matrix = nn.functional.interpolate(rows, size=half, mode="bilinear").flatten(1).T
        self.register_buffer("matrix", matrix.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix @ x


def _check(config: Any, rows: int, columns: int) -> None:
    tower = config.vision_config.model_type
    if tower != "siglip_vision_model":
        raise PlanError(f"vision tower '{tower}' is not supported, SigLIP's is")
    if config.vision_feature_select_strategy != "full":
        strategy = config.vision_feature_select_strategy
        raise PlanError(f"vision_feature_select_strategy '{strategy}' is not supported, 'full' is")
    # The original shrinks a grid of more than about 1.1^2 * max tiles (modeling, AnyRes packing).
    ratio = str(config.vision_aspect_ratio)
    digits = ratio.removeprefix("anyres_max_")
    if not digits.isdecimal() or int(digits) == 0 or digits == ratio:
        raise PlanError(
            f"vision_aspect_ratio '{ratio}' is not supported, anyres_max_N is; set anyres_max_9 in"
            " config.json for as many tiles as the published model has"
        )
    most = int(digits)
    if sqrt(rows * columns / most) > 1.1:
        raise PlanError(f"tiles {rows}x{columns} is more than this model's {most} tiles")
