"""LFM2-VL (arXiv 2511.23404): SigLIP 2 NaFlex on one grid, 2x2 fold, LFM2 with short convolutions.

The published processor keeps a picture's shape: it takes the grid of patches that comes nearest to
it, and cuts a large picture into square tiles before a thumbnail of the picture's shape. A static
graph has one grid, that of `--size`, to which a picture is stretched, or that of a tile; the table
of positions is interpolated to it once, here.

Source: transformers' `models/lfm2_vl`. Limits: as many rows of tiles as columns, of which the
thumbnail is square, too; no clips.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.errors import PlanError
from edgevlm.graphs.embedders import GridPatches
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.naflex import packed
from edgevlm.models.shared.folds import FoldedConnector, MeanFold
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.tiles.lfm2_vl import (
    IMAGE,
    image_items,
    image_spec,
    processor_options,
    processor_stand_in,
    processor_views,
)
from edgevlm.models.shared.towers import encoder_spec
from edgevlm.models.shared.views import check_still
from edgevlm.recipe import Recipe

__all__ = [
    "AUTO_CLASS",
    "KIND",
    "describe",
    "left_out",
    "parts",
    "processor_options",
    "processor_stand_in",
    "processor_views",
    "reference_features",
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of an LFM2-VL checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, a size or a tower that the static form has not.
    """
    vision, fold = config.vision_config, config.downsample_factor
    check_still(recipe, config.model_type)
    if vision.model_type != "siglip2_vision_model":
        raise PlanError(f"vision tower '{vision.model_type}' is not supported, expected SigLIP 2")
    image = image_spec(vision, fold, processor, recipe)
    rows, columns = image.height // vision.patch_size, image.width // vision.patch_size
    side = rows // fold, columns // fold
    decoder, count = decoder_spec(config.text_config), side[0] * side[1]
    items = image_items(image, count)
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
