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
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import LEVELS, ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import RESAMPLE, Description
from edgevlm.models.shared.anyres import (
    PackLines,
    base_and_tile,
    known_grids,
    processor_options,
    processor_views,
)
from edgevlm.models.shared.encoders.window_qformer import MeanOfPatches, WindowQFormer
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_view, normalization
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
    vision, (rows, columns) = config.vision_config, recipe.tiles
    check_still(recipe, config.model_type)
    tower = known_tower(vision, *TOWERS)
    if keeps_class_token(config, tower):
        raise PlanError("vision_feature_select_strategy 'full' keeps a class token; set 'default'")
    known = known_grids(config)
    if rows * columns > 1 and (rows, columns) not in known:
        raise PlanError(
            f"tiles {rows}x{columns} is not a grid of the model, expected one of {sorted(known)}"
        )
    check_view(processor, vision.image_size, tower.crops)
    mean, std = normalization(processor, tower.mean, tower.std)
    image = ImageSpec(
        height=vision.image_size,
        width=vision.image_size,
        rows=rows,
        columns=columns,
        global_view="first",
        frames=1,
        resample=RESAMPLE[processor.get("resample", 3)],
        mean=mean,
        std=std,
    )
    patches, side, decoder = _patches(vision), _side(config), decoder_spec(config.text_config)
    targets = sorted(_groups(config))
    spec = encoder_spec(vision, _depth(config), patches**2, class_token=tower.class_token)
    grids = ((side, side), (1, 1) if image.views == 1 else (rows * side, columns * side + 1))
    shape = VisualShape(grids, decoder.width, *image.tiling)
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
    groups = _groups(config)
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
            fold=MeanOfPatches(_patches(config.vision_config), _side(config)),
            after=layers[spec.layers :],
            levels=tuple(made[target] for target in below),
        ),
        pack=PackLines(image, _side(config)),
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
    layers = () if all_layers else range(_depth(config), depth)
    after = tuple(f"{tower}encoder.layers.{layer}." for layer in layers)
    return *after, f"{tower}post_layernorm.", f"{tower}head."


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder and packing: [P, 3, h_px, w_px] -> [1, N, C]."""
    factor = model.config.text_config.embedding_multiplier
    return _own(model, pixel_values, description)[0] / factor


def reference_levels(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The same of the other projectors, in the order of the decoder's layers: [L, N, C]."""
    own = _own(model, pixel_values, description)
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


def _patches(vision: Any) -> int:
    return int(vision.image_size // vision.patch_size)


def _side(config: Any) -> int:
    """Tokens of a view's side.

    Raises:
        PlanError: If the windows do not make it.
    """
    patches, rate = _patches(config.vision_config), config.downsample_rate
    try:
        queries, window = map(int, rate.split("/"))
        made = patches // window * queries
    except (AttributeError, ValueError, ZeroDivisionError) as cause:
        raise PlanError(f"downsample_rate is {rate!r}, expected such as '4/8'") from cause
    if patches % window or made != int(patches * Fraction(rate)) or made * 2 != patches:
        raise PlanError(
            f"downsample_rate {rate} does not make half of {patches} patches a side in whole"
            " windows, which the static form needs; correct config.json"
        )
    return made


def _groups(config: Any) -> dict[int, tuple[int, str]]:
    """By the decoder's layer that takes it: the encoder's state, and the projector's name.

    Raises:
        PlanError: If none goes to the first layer, two go to one, or there are too many.
    """
    depth = config.vision_config.num_hidden_layers
    below, spatial = enumerate(config.deepstack_layer_map), enumerate(config.spatial_target_layers)
    read = [(v, t, f"layerwise_projectors.{i}") for i, (v, t) in below]
    read += [(config.spatial_vision_layer, t, f"spatial_projectors.{i}") for i, t in spatial]
    found = {target: (v if v >= 0 else depth + 1 + v, name) for v, target, name in read}
    states = [state for state, _ in found.values()]
    if not all(type(n) is int for n in (*found, *states)) or min(found, default=0) < 0:
        raise PlanError(
            f"deepstack_layer_map is {config.deepstack_layer_map} and spatial_target_layers"
            f" {config.spatial_target_layers}, expected layers of the language model from 0 on"
        )
    if 0 not in found or len(found) != len(read) or len(found) > len(LEVELS) + 1:
        named = sorted(target for _, target, _ in read)
        raise PlanError(
            f"deepstack_layer_map and spatial_target_layers name the layers {named} of the language"
            f" model, expected 0 and at most {len(LEVELS)} others, each once"
        )
    if not all(1 <= state <= depth for state in states) or found[0][0] != max(states):
        raise PlanError(
            "the projector for layer 0 of the language model must read the last of the encoder's"
            " layers that are read, and each some layer; correct deepstack_layer_map"
        )
    return found


def _depth(config: Any) -> int:
    """Layers of the encoder up to the last one that is read."""
    return _groups(config)[0][0]


def _own(model: Any, pixel_values: Tensor, description: Description) -> dict[int, Tensor]:
    """The model's own tokens [1, N, C], by the decoder's layer that takes them."""
    core, image = model.model, description.image
    if image.views > 1:
        size = torch.tensor([[image.rows * image.height, image.columns * image.width]])
        made = core.get_image_features(pixel_values[None], size, return_dict=True)
        return {target: packed[0][None] for target, packed in made.deepstack_features}
    # The original always adds tiles, so its encoder and projectors are asked alone.
    states = core.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    end, drops = core.image_newline[None, None], description.encoder.class_token
    return {
        target: torch.cat((core.get_submodule(name)(states[state][:, int(drops) :]), end), dim=1)
        for target, (state, name) in _groups(model.config).items()
    }
