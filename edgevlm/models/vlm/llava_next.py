"""LLaVA-NeXT (after arXiv 2310.03744): CLIP encoder, two-layer projector, Llama or its kin.

One view is the base image; R x C is the base image followed by one grid of R*C tiles in raster
order over all tiles, as AnyRes packs it, each row closed by the learned newline (an extra row of
the embedding table). CLIP's class token goes through the encoder with the patches and is dropped
after the selected layer (`vision_feature_select_strategy` "default"); "full" keeps it as a grid of
its own in front, with the base image alone, for no grid of tiles has a place for it (transformers'
packing fails on it).

Sources: https://llava-vl.github.io/blog/2024-01-30-llava-next/ (LLaVA 1.6), CLIP (arXiv
2103.00020), transformers' `models/llava_next/modeling_llava_next.py`. Differences from the
original: the grid is fixed by the recipe and the picture fills it without padding, so nothing is
unpadded; when tokens are removed rows lose their meaning and one newline at the end remains; a
picture may be shown by its base image alone. Limits: no clips; several pictures stand side by
side, where the published templates write a line break between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.plan import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import ClassPatchEmbedding, DecoderLayer, EncoderLayer, FinalNorm
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import RESAMPLE, Description, ModelParts, three
from edgevlm.models.vlm.llava_onevision import NEWLINE, Pack, newline_rows, processor_views
from edgevlm.recipe import Recipe

__all__ = ["describe", "pieces", "processor_views", "reference_features"]

# What CLIP was trained with, and the processor's values where a checkpoint names none.
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# The language models whose layers `DecoderLayer` computes.
DECODERS = ("llama", "mistral", "qwen2")


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a LLaVA-NeXT checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, an encoder, a language model, a feature layer, a selection or a tile
            grid that the static form has not.
    """
    vision, (rows, columns) = config.vision_config, recipe.tiles
    if recipe.frames > 1:
        raise PlanError(f"llava_next has no clips: {recipe.frames} frames were asked for, it has 1")
    _check(config)
    _check_grid(config, rows, columns)
    side = vision.image_size // vision.patch_size
    image = ImageSpec(
        height=vision.image_size,
        width=vision.image_size,
        rows=rows,
        columns=columns,
        global_view="first",
        frames=1,
        resample=RESAMPLE[processor.get("resample", 3)],
        mean=three(processor.get("image_mean", CLIP_MEAN)),
        std=three(processor.get("image_std", CLIP_STD)),
    )
    whole = config.vision_feature_select_strategy == "full"
    grids: tuple[tuple[int, int], ...] = (((1, 1),) if whole else ()) + ((side, side),)
    if image.views > 1:
        grids += ((rows * side, columns * side),)
    shape = VisualShape(grids, config.text_config.hidden_size, *image.tiling)
    flat: tuple[str | LayoutItem, ...] = (LayoutItem("visual", start=0, stop=shape.tokens), NEWLINE)
    return Description(
        image=image,
        view_tokens=side * side + whole,
        shape=shape,
        full_image=flat if image.views == 1 else newline_rows(side, rows, columns),
        reduced_image=flat,
        placeholder="<image>",
    )


def pieces(model: Any, description: Description) -> ModelParts:
    """Static pieces over the weights of `model`; see `ModelParts`."""
    core, config = model.model, model.config
    tower, text, image = core.vision_tower, config.text_config, description.image
    side = config.vision_config.image_size // config.vision_config.patch_size
    whole = config.vision_feature_select_strategy == "full"
    return ModelParts(
        vision=(
            ClassPatchEmbedding(tower.embeddings, tower.pre_layrnorm),
            *(EncoderLayer(layer) for layer in tower.encoder.layers[: _depth(config)]),
            nn.Sequential(nn.Identity() if whole else DropClass(), core.multi_modal_projector),
        ),
        pack=Pack(image.rows, image.columns, side) if image.views > 1 else nn.Identity(),
        decoder=tuple(
            DecoderLayer(layer, text.num_attention_heads, text.num_key_value_heads)
            for layer in core.language_model.layers
        ),
        norm=FinalNorm(core.language_model.norm),
        table=(core.language_model.embed_tokens.weight, core.image_newline[None]),
        head=model.lm_head.weight,
        language_model=core.language_model,
        class_token=not whole,  # where it stays it is a token like the others
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder and packing, newlines left out: [P, 3, h_px, w_px] -> [1, N, C]."""
    core, config, image = model.model, model.config, description.image
    if image.views == 1:  # the original always adds tiles, so its encoder is asked alone
        states = core.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        chosen = states[config.vision_feature_layer]
        whole = config.vision_feature_select_strategy == "full"
        return core.multi_modal_projector(chosen if whole else chosen[:, 1:])
    size = torch.tensor([[image.rows * image.height, image.columns * image.width]])
    packed = core.get_image_features(pixel_values[None], size, return_dict=True)
    tokens = packed.pooler_output[0]
    side = image.height // config.vision_config.patch_size
    base, grid = tokens[: side * side], tokens[side * side :]
    grid = grid.reshape(image.rows * side, -1, tokens.shape[-1])[:, :-1]
    return torch.cat((base, grid.flatten(0, 1)))[None]


class DropClass(nn.Module):
    """The patches without the class token before them: [1, 1 + N, D] -> [1, N, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:]


def _depth(config: Any) -> int:
    """Encoder layers up to the selected one; layer 0 is their input, -1 the last one's output."""
    last = config.vision_feature_layer
    return int(config.vision_config.num_hidden_layers + 1 + last if last < 0 else last)


def _check(config: Any) -> None:
    vision, text, layer = config.vision_config, config.text_config, config.vision_feature_layer
    if vision.model_type != "clip_vision_model":
        raise PlanError(f"vision tower '{vision.model_type}' is not supported, CLIP's is")
    if text.model_type not in DECODERS:
        raise PlanError(
            f"language model '{text.model_type}' is not supported, {', '.join(DECODERS)} are"
        )
    window = getattr(text, "sliding_window", None)
    if window is not None and window < text.max_position_embeddings:
        raise PlanError(f"a sliding window of {window} tokens is not supported, full attention is")
    if not isinstance(layer, int):
        raise PlanError("several vision feature layers are not supported, only one is")
    if not 0 <= _depth(config) <= vision.num_hidden_layers:
        raise PlanError(
            f"vision_feature_layer {layer} is none of the {vision.num_hidden_layers} layers"
        )


def _check_grid(config: Any, rows: int, columns: int) -> None:
    if rows * columns == 1:
        return
    size = config.vision_config.image_size
    known = {(h // size, w // size) for h, w in config.image_grid_pinpoints}
    if (rows, columns) not in known:
        raise PlanError(f"tiles {rows}x{columns} is none of the model's grids {sorted(known)}")
    if config.vision_feature_select_strategy != "default":
        raise PlanError(
            f"tiles {rows}x{columns} need vision_feature_select_strategy 'default', the class token"
            f" of '{config.vision_feature_select_strategy}' has no place in a grid; use 1x1"
        )
