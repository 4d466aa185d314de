"""InternVL 3 and 3.5 (arXiv 2504.10479, 2508.18265): InternViT, 2x2 fold, two-layer projector.

The language model is Qwen2, Qwen3 or Llama's kin. A picture is one view, or R x C tiles followed by
a thumbnail; a clip has a view a frame, with its number in front. The class token goes through the
encoder with the patches and is dropped behind it.

Source: transformers' `models/internvl/modeling_internvl.py`. Differences from the processor: the
grid is fixed by the recipe instead of following the picture's shape.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import ScaledEncoderLayer
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.folds import FoldedConnector, MeanFold
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_view
from edgevlm.models.shared.towers import CLIP_MEAN, CLIP_STD, encoder_spec, selected_layers
from edgevlm.models.shared.views import image_of
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
# What its tokenizers call them; a plan compares the prompt with the checkpoint's own processor.
IMAGE, VIDEO, START, END = "<IMG_CONTEXT>", "<video>", "<img>", "</img>"
MOST_TILES = 12


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of an InternVL checkpoint; see `Description`.

    Raises:
        PlanError: For a view, a selection, a tile grid or a language model that the static form
            has not.
    """
    vision, (rows, columns) = config.vision_config, recipe.tiles
    size, patch = _square(vision.image_size), _square(vision.patch_size)
    fold, patches = _fold(config.downsample_ratio), size // patch
    if config.vision_feature_select_strategy != "default":
        strategy = config.vision_feature_select_strategy
        raise PlanError(
            f"vision_feature_select_strategy '{strategy}' keeps the class token, which has no place"
            " in the 2x2 fold; set 'default' in config.json"
        )
    if type(config.vision_feature_layer) is not int or not selected_layers(config):
        raise PlanError(
            f"vision_feature_layer is {config.vision_feature_layer}, expected one layer of the"
            " encoder, such as -1; correct config.json"
        )
    if patches % fold:
        raise PlanError(f"{patches} patches a side do not divide by the fold of {fold}")
    check_view(processor, size)
    fewest, most = processor.get("min_patches", 1), processor.get("max_patches", MOST_TILES)
    if rows * columns > 1 and not fewest <= rows * columns <= most:
        raise PlanError(
            f"tiles {rows}x{columns} are {rows * columns}, this model's processor makes {fewest} to"
            f" {most}; choose fewer, or another max_patches in preprocessor_config.json"
        )
    image = image_of(processor, recipe, (size, size), "last", CLIP_MEAN, CLIP_STD)
    side = patches // fold
    clip, n = recipe.frames > 1, side * side
    decoder = decoder_spec(config.text_config)
    items = _clip(recipe.frames, n) if clip else _image(image.views * n)
    return Description(
        image=image,
        view_tokens=n,
        shape=VisualShape(((side, side),) * image.views, decoder.width, *image.tiling),
        encoder=encoder_spec(vision, selected_layers(config), patches**2, class_token=True),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=VIDEO if clip else IMAGE,
        content_type="video" if clip else "image",
        visual_token=IMAGE,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, config, spec = model.model, model.config, description.encoder
    tower, fold = core.vision_tower, round(1 / config.downsample_ratio)
    layers = tuple(ScaledEncoderLayer(layer) for layer in tower.encoder.layer)
    # The norm behind the last layer is not part of the states that are selected by number.
    norm = tower.layernorm if config.vision_feature_layer == -1 else nn.Identity()
    return ModelParts(
        encoder=EncoderParts(
            spec=spec,
            embedding=ClassPatches(tower.embeddings),
            layers=layers[: spec.layers],
            connector=FoldedConnector(norm, core.multi_modal_projector, fold),
            fold=MeanFold(fold),
            after=layers[spec.layers :],
        ),
        pack=nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [P, 3, h_px, w_px] -> [1, P*N, C]."""
    features = model.model.get_image_features(pixel_values, return_dict=True).pooler_output
    return features.reshape(1, -1, features.shape[-1])


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """Options of the model's own processor for this grid: the picture's shape does the rest."""
    tiles = image.rows * image.columns
    return {"crop_to_patches": tiles > 1, "min_patches": tiles, "max_patches": tiles}


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The views f32 [P, 3, h_px, w_px] of the model's own processor."""
    return processor(picture, return_tensors="np", **processor_options(image))["pixel_values"]


class ClassPatches(nn.Module):
    """InternViT's tokens of a view, the class token first: [1, 3, h_px, w_px] -> [1, 1 + N, D]."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.patch = embeddings.patch_embeddings.projection
        self.token, self.positions = embeddings.cls_token, embeddings.position_embeddings

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token, patches), dim=1)
        return tokens if self.positions is None else tokens + self.positions


def _fold(ratio: Any) -> int:
    """Patches of a side that become a token.

    Raises:
        PlanError: If they are not a whole number.
    """
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1 or round(1 / ratio) * ratio != 1:
        raise PlanError(f"downsample_ratio is {ratio!r}, expected 1 over a whole number, as 0.5 is")
    return round(1 / ratio)


def _square(size: Any) -> int:
    """The side of a view or a patch.

    Raises:
        PlanError: If it is no square of whole pixels.
    """
    sides = set(size) if isinstance(size, list | tuple) else {size}
    (side, *others) = sides
    if others or not isinstance(side, int) or side < 1:
        raise PlanError(f"views or patches of {size} pixels are not supported, only squares are")
    return side


def _image(tokens: int) -> tuple[str | LayoutItem, ...]:
    return START, LayoutItem("visual", start=0, stop=tokens), END


def _clip(frames: int, n: int) -> tuple[str | LayoutItem, ...]:
    items: list[str | LayoutItem] = []
    for index in range(frames):
        line = "\n" if index else ""
        visual = LayoutItem("visual", start=index * n, stop=(index + 1) * n)
        items += [f"{line}Frame{index + 1}: {START}", visual, END]
    return tuple(items)
