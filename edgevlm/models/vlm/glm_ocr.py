"""GLM-OCR: an encoder with rotary positions and norms of queries and keys, and GLM with M-RoPE.

A picture is one view of `--size`, 448x448 pixels unless told, and stands for a grid of tokens in
the text: positions have three axes, time, height and width. Behind the encoder each block of 2x2
patches becomes a token by a convolution, which is a matrix here.

Source: transformers' `models/glm_ocr/modeling_glm_ocr.py`. Limits: those of `models.shared.qwen`,
`qwen_pictures` and `glm`; methods that merge inside the encoder or compare its keys are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.graphs.layers import rms_norm
from edgevlm.graphs.ops import rotary
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import Description
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.qwen import (
    Fold,
    GridTables,
    Patches,
    RotaryLayer,
    encoder_spec,
    patch_grid,
    rotary_frequencies,
)
from edgevlm.models.shared.qwen_pictures import (
    as_patches,
    image_items,
    image_spec,
    processor_options,
    processor_views,
)
from edgevlm.models.shared.towers import CLIP_MEAN, CLIP_STD
from edgevlm.recipe import Recipe

__all__ = [
    "AUTO_CLASS",
    "KIND",
    "describe",
    "parts",
    "processor_options",
    "processor_views",
    "reference_features",
]

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
DEFAULT = (448, 448)
IMAGE, START, END = "<|image|>", "<|begin_of_image|>", "<|end_of_image|>"


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a GLM-OCR checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, a size, a processor or a decoder that the static form has not.
    """
    vision = config.vision_config
    block = vision.patch_size * vision.spatial_merge_size
    # Its processor counts the pixels of both frames that a still is.
    frames = vision.temporal_patch_size
    image = image_spec(vision, processor, recipe, DEFAULT, block, CLIP_MEAN, CLIP_STD, frames)
    grid, decoder = patch_grid(vision, image), decoder_spec(config.text_config)
    items = image_items(*grid.tokens, START, END)
    mark = processor.get("image_token", IMAGE)
    return Description(
        image=image,
        view_tokens=grid.tokens[0] * grid.tokens[1],
        shape=VisualShape((grid.tokens,), decoder.width, *image.tiling),
        encoder=encoder_spec(vision, grid.height * grid.width),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=f"{START}{mark}{END}",
        visual_token=mark,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core = model.model
    tower, grid = core.visual, patch_grid(model.config.vision_config, description.image)
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=Patches(tower.patch_embed.proj, grid),
            layers=tuple(map(Layer, tower.blocks)),
            connector=Connector(tower),
            fold=Fold(grid),
            grid=GridTables(grid, rotary_frequencies(tower)),
        ),
        pack=nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [1, 3, h_px, w_px] -> [1, N, C]."""
    patches, sides = as_patches(pixel_values, model.config.vision_config)
    found = model.model.get_image_features(patches, sides, return_dict=True).pooler_output
    return torch.cat(tuple(found))[None]


class Layer(RotaryLayer):
    """An encoder layer that norms queries and keys head by head before it turns them."""

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.layer.attn
        query, key, value = attn.qkv(rms_norm(self.layer.norm1, x)).chunk(3, dim=-1)
        query = rotary(self._normed(attn.q_norm, query), cos, sin, self.heads)
        return query, rotary(self._normed(attn.k_norm, key), cos, sin, self.heads), value

    def _normed(self, norm: Any, x: Tensor) -> Tensor:
        # Each head is a row: targets take three dimensions.
        by_head = x.reshape(1, x.shape[1] * self.heads, -1)  # [1, N*heads, D]
        return rms_norm(norm, by_head).reshape(x.shape)


class Connector(nn.Module):
    """Norm, fold and the original's merger: patches [1, N, D] -> tokens in raster order [1, n, C].

    A convolution of two by two patches is a matrix over their rows side by side.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.norm, self.merger, kernel = tower.post_layernorm, tower.merger, tower.downsample
        self.block = tower.spatial_merge_size**2
        width, patch = kernel.out_channels, kernel.in_channels
        self.fold = nn.Linear(self.block * patch, width, bias=False, device="meta")
        rows = kernel.weight.detach().permute(0, 2, 3, 1).reshape(width, -1)
        self.fold.weight = nn.Parameter(rows, requires_grad=False)
        self.fold.bias = kernel.bias

    def forward(self, x: Tensor) -> Tensor:
        blocks = rms_norm(self.norm, x).reshape(1, x.shape[1] // self.block, -1)
        features: Tensor = self.merger(self.fold(blocks))
        return features
