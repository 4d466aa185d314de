"""Granite 4 Vision: SigLIP or CLIP, a window Q-Former for each of several depths, Granite.

A picture is the base image, or the base image followed by one grid of R x C tiles, each row of the
grid closed by the learned newline, as AnyRes packs it. Each Q-Former reads a layer of the encoder,
and what it gives goes to the input of a layer of the decoder at the rows of visual tokens: the
first one's fills the rows, the others' are added. The newline goes to all of them, so that it is
one of the visual tokens here.

Source: transformers' `models/granite4_vision/modeling_granite4_vision.py`. Differences from the
original: the grid is fixed by the recipe and the picture fills it without padding; a picture may be
encoded by its base image alone. Limits: no clips; the dense language model alone; methods inside
the decoder are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.anyres import (
    PackLines,
    base_and_tile,
    image_spec,
    processor_options,
    processor_views,
)
from edgevlm.models.shared.encoders.window_qformer import (
    MeanOfPatches,
    WindowQFormer,
    own_tokens,
    patch_side,
    projectors,
    read_layers,
    token_side,
)
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.towers import (
    TOWERS,
    DropClass,
    encoder_spec,
    keeps_class_token,
    known_tower,
)
from edgevlm.models.shared.views import check_still
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
    "reference_levels",
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Granite 4 Vision checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, an encoder, projectors or a decoder that the static form has
            not.
    """
    vision = config.vision_config
    check_still(recipe, config.model_type)
    tower = known_tower(vision, *TOWERS)
    if keeps_class_token(config, tower):
        raise PlanError("vision_feature_select_strategy 'full' keeps a class token; set 'default'")
    image = image_spec(config, processor, recipe, tower.mean, tower.std, tower.crops)
    patches, side = patch_side(vision), token_side(config)
    decoder = decoder_spec(config.text_config)
    targets = sorted(projectors(config))
    spec = encoder_spec(vision, read_layers(config), patches**2, class_token=tower.class_token)
    packed = (1, 1) if image.views == 1 else (image.rows * side, image.columns * side + 1)
    shape = VisualShape(((side, side), packed), decoder.width, *image.tiling)
    # Packing leaves the newlines of the base image and of inner tiles out.
    items = (LayoutItem("visual", start=0, stop=image.views * side * (side + 1)),)
    levels = tuple(target - 1 for target in targets[1:] if target <= len(decoder.layers) - 1)
    return Description(
        image=image,
        view_tokens=side * (side + 1),
        shape=shape,
        encoder=replace(spec, level_width=decoder.width),
        decoder=replace(decoder, levels=levels),
        full_image=items,
        reduced_image=items,
        placeholder=processor.get("image_token", "<image>"),
        processor_tokens=base_and_tile(side) if image.views == 1 else shape.tokens,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, config, spec = model.model, model.config, description.encoder
    tower, image = core.vision_tower, description.image
    drop = DropClass() if spec.class_token else nn.Identity()
    layers = tuple(EncoderLayer(layer) for layer in tower.encoder.layers)
    groups = projectors(config)
    # The language model multiplies what enters its first layer, and these tokens are added behind.
    scales = {0: 1 / config.text_config.embedding_multiplier}
    made = {
        target: (
            state - 1,
            WindowQFormer(
                core.get_submodule(name), drop, core.image_newline, scales.get(target, 1.0)
            ),
        )
        for target, (state, name) in groups.items()
    }
    below = [target + 1 for target in description.decoder.levels]
    decoder = decoder_parts(core.language_model, description.decoder)
    return ModelParts(
        encoder=EncoderParts(
            spec=spec,
            embedding=known_tower(config.vision_config, *TOWERS).embedding(tower),
            layers=layers[: spec.layers],
            connector=made[0][1],
            fold=MeanOfPatches(patch_side(config.vision_config), token_side(config)),
            after=layers[spec.layers :],
            levels=tuple(made[target] for target in below),
        ),
        pack=PackLines(image, token_side(config)),
        decoder=replace(
            decoder,
            language_model=Cached(core.language_model),
            level_inputs=lambda visual, levels: {
                "vision_mask": visual[..., None],
                "deepstack_features": dict(zip(below, levels, strict=True)),
            },
        ),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
        logit_scale=1 / config.text_config.logits_scaling,
    )


def left_out(config: Any, all_layers: bool) -> tuple[str, ...]:
    """Weights of the tower that no projector needs: all that follows the last layer read."""
    tower, depth = "model.vision_tower.", config.vision_config.num_hidden_layers
    layers = () if all_layers else range(read_layers(config), depth)
    after = tuple(f"{tower}encoder.layers.{layer}." for layer in layers)
    return *after, f"{tower}post_layernorm.", f"{tower}head."


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder and packing: [P, 3, h_px, w_px] -> [1, N, C]."""
    factor = model.config.text_config.embedding_multiplier
    return own_tokens(model, pixel_values, description)[0] / factor


def reference_levels(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The same of the other projectors, in the order of the decoder's layers: [L, N, C]."""
    own = own_tokens(model, pixel_values, description)
    return torch.cat([own[layer + 1] for layer in description.decoder.levels])


class Cached(nn.Module):
    """The model's own decoder, which alone begins no cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, cache: Any = None, **inputs: Any) -> Any:
        from transformers import DynamicCache

        begun = DynamicCache(config=self.model.config) if cache is None else cache
        return self.model(cache=begun, **inputs)
