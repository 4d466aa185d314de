"""PaddleOCR-VL (arXiv 2510.14528): SigLIP with rotary positions, and Ernie 4.5 with M-RoPE.

A view has 448x448 pixels unless told. The encoder has learned positions, resampled to the grid, and
turns queries and keys by the place of a patch.

Rewrite, exact: patches go through the encoder in blocks of 2x2, which the projector folds, where
the original has them row by row.

Sources: arXiv 2510.14528, section 2.1; transformers'
`models/paddleocr_vl/modeling_paddleocr_vl.py`. Limits: those of `models.shared.qwen`.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.graphs.ops import attention, rotary
from edgevlm.graphs.parts import EncoderParts, EncoderSpec, ModelParts
from edgevlm.models.family import Description
from edgevlm.models.shared.encoders.qwen import (
    LACKING,
    UNMERGEABLE,
    Connector,
    Fold,
    GridTables,
    Patches,
    PatchGrid,
    RotaryLayer,
    learned_positions,
    patch_grid,
    rotary_frequencies,
)
from edgevlm.models.shared.qwen import Line, with_decoder
from edgevlm.models.shared.qwen_pictures import Marks, processor_options, sized_inputs
from edgevlm.models.shared.towers import CLIP_MEAN, CLIP_STD, encoder_spec

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
MARKS = Marks("<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>")


def spec(vision: Any, grid: PatchGrid) -> EncoderSpec:
    """Numbers of SigLIP's encoder, whose layers turn queries and keys."""
    made = encoder_spec(vision, vision.num_hidden_layers, grid.height * grid.width)
    return replace(made, unmergeable=UNMERGEABLE, lacking=LACKING)


LINE = Line((448, 448), CLIP_MEAN, CLIP_STD, MARKS, spec=spec)
describe = LINE.describe


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, vision = model.model, model.config.vision_config
    tower, grid = core.visual.vision_model, patch_grid(vision, description.image)
    table, own = tower.embeddings.position_embedding, tower.embeddings
    resampled = SimpleNamespace(
        pos_embed=table,
        num_grid_per_side=own.num_grid_per_side,
        interpolation_mode=own.interpolation_mode,
        interpolation_align_corners=own.interpolation_align_corners,
    )
    projector = core.projector
    connector = Connector(grid, projector.pre_norm, projector.linear_1, projector.linear_2)
    encoder = EncoderParts(
        spec=description.encoder,
        embedding=Patches(own.patch_embedding, grid, learned_positions(resampled, grid)),
        layers=tuple(map(Layer, tower.encoder.layers)),
        connector=nn.Sequential(tower.post_layernorm, connector),
        fold=Fold(grid),
        grid=GridTables(grid, rotary_frequencies(tower.encoder)),
    )
    return with_decoder(model, description, encoder)


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [1, 3, h_px, w_px] -> [1, N, C]."""
    side = model.config.vision_config.patch_size
    rows, columns = pixel_values.shape[2] // side, pixel_values.shape[3] // side
    cut = pixel_values[0].reshape(3, rows, side, columns, side).permute(1, 3, 0, 2, 4)
    patches, sides = cut.reshape(rows * columns, 3, side, side), [[1, rows, columns]]
    found = model.model.get_image_features(patches, torch.tensor(sides), return_dict=True)
    return torch.cat(tuple(found.pooler_output))[None]


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor, which has patches in rows."""
    patches, rows, columns = sized_inputs(processor, picture, image)
    side = processor.patch_size
    view = patches.reshape(rows, columns, 3, side, side).transpose(2, 0, 3, 1, 4)
    return view.reshape(1, 3, image.height, image.width)


class Layer(RotaryLayer):
    """SigLIP's encoder layer with rotated queries and keys, shapes of `RotaryLayer`."""

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        self.layer, self.windows, self.heads = layer, 1, layer.self_attn.num_heads

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, h = self.layer.self_attn, self.layer.layer_norm1(x)
        query, key = (rotary(t, cos, sin, self.heads) for t in (attn.q_proj(h), attn.k_proj(h)))
        return query, key, attn.v_proj(h)

    def finish(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        x = x + self.layer.self_attn.out_proj(attention(query, key, value, self.heads))
        fed: Tensor = self.layer.mlp(self.layer.layer_norm2(x))
        return x + fed
