"""Granite Docling (granite-for-docling-500m and -2b): SigLIP, DeepStack, Granite.

A page is one tile, or R x C tiles followed by the whole page, each 512 pixels square and named by a
marker. Features of three layers of the encoder, each through a connector of its own, are added to
the outputs of the first three layers of the decoder at the rows of visual tokens (DeepStack, arXiv
2406.04334). Where tokens are removed these are taken at the positions of those that stay, also
where a method merges.

Source: transformers' `models/granite_docling/modeling_granite_docling.py`. Limits: the coarse route
alone, which its processor takes unless told; the router that asks for the fine one is left out. No
clips; methods inside the decoder are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import EncoderLayer, PatchEmbedding
from edgevlm.graphs.parts import EncoderParts, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import RESAMPLE, Description
from edgevlm.models.shared.encoders.levels import level_inputs, level_layers
from edgevlm.models.shared.folds import MeanFold, folded
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_view, normalization
from edgevlm.models.shared.towers import CLIP_MEAN, CLIP_STD, encoder_spec
from edgevlm.models.shared.views import check_still
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
IMAGE, FAKE, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
# The tokenizer has <row_1_col_1> to <row_16_col_16>.
MARKERS = 16


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a Granite Docling checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, tiles, a processor, levels or a decoder that the static form has not.
    """
    vision, (rows, columns) = config.vision_config, recipe.tiles
    check_still(recipe, config.model_type)
    check_view(processor, vision.image_size)
    most = processor.get("max_patches", 32)
    if rows * columns > most or max(rows, columns) > MARKERS:
        raise PlanError(
            f"tiles {rows}x{columns} are more than the model takes, {most} in all and {MARKERS} a"
            " side; choose fewer"
        )
    patches, scale = vision.image_size // vision.patch_size, vision.scale_factor
    if patches % scale:
        raise PlanError(f"{patches} patches a side do not divide by the scale factor {scale}")
    mean, std = normalization(processor, CLIP_MEAN, CLIP_STD)
    image = ImageSpec(
        height=vision.image_size,
        width=vision.image_size,
        rows=rows,
        columns=columns,
        global_view="last",
        frames=1,
        resample=RESAMPLE[processor.get("resample", 3)],
        mean=mean,
        std=std,
    )
    side, decoder = patches // scale, decoder_spec(config.text_config)
    levels = len(_levels(vision, len(decoder.layers)))
    encoder = encoder_spec(vision, vision.num_hidden_layers, patches**2)
    items = _page(image, side**2)
    return Description(
        image=image,
        view_tokens=side**2,
        shape=VisualShape(((side, side),) * image.views, decoder.width, *image.tiling),
        encoder=replace(encoder, level_width=decoder.width),
        decoder=replace(decoder, levels=tuple(range(levels))),
        full_image=items,
        reduced_image=items,
        placeholder=processor.get("image_token", IMAGE),
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, config = model.model, model.config
    tower, scale = core.vision_model, config.vision_config.scale_factor
    mergers = tower.connector.coarse.deepstack_mergers
    layers = _levels(config.vision_config, len(description.decoder.layers))
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=PatchEmbedding(
                tower.embeddings.patch_embedding, tower.embeddings.position_embedding
            ),
            layers=tuple(EncoderLayer(layer) for layer in tower.encoder.layers),
            connector=Connector(tower.post_layernorm, tower.connector, scale),
            fold=MeanFold(scale),
            levels=tuple(
                (layer, Merger(merger, scale))
                for layer, merger in zip(layers, mergers, strict=False)
            ),
        ),
        pack=nn.Identity(),
        decoder=replace(
            decoder_parts(core.text_model, description.decoder), level_inputs=level_inputs
        ),
        table=(core.text_model.embed_tokens.weight,),
        head=model.lm_head.weight,
        logit_scale=1 / config.text_config.logits_scaling,
    )


def left_out(config: Any, all_layers: bool) -> tuple[str, ...]:
    """Weights of the fine route, and of the router that asks for it."""
    return "model.vision_model.connector.fine.", "model.density_router."


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [P, 3, h_px, w_px] -> [1, P*N, C]."""
    return _own(model, pixel_values).pooler_output[0][None]


def reference_levels(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The same for the levels before the last: [L, P*N, C]."""
    return torch.stack([level[0] for level in _own(model, pixel_values).deepstack_features])


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """Options of the model's own processor for this grid: the picture's shape does the rest."""
    tiles = image.rows * image.columns
    cut = {"crop_to_patches": tiles > 1, "min_patches": tiles, "max_patches": tiles}
    return cut | {"dense_max_patches": 0}  # without its rule for more tiles than that


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The views f32 [P, 3, h_px, w_px] of the model's own processor."""
    return processor(picture, return_tensors="np", **processor_options(image))["pixel_values"][0]


class Connector(nn.Module):
    """Two norms, fold, projection, positions and a matrix: [1, patches, D] -> [1, N, C]."""

    positions: Tensor

    def __init__(self, norm: nn.Module, connector: Any, scale: int) -> None:
        super().__init__()
        coarse, self.scale = connector.coarse, scale
        self.before = nn.Sequential(norm, connector.ln_in)
        self.projection = coarse.projection
        self.after = nn.Sequential(connector.ln_mid, nn.GELU(), connector.mlp_fc2, connector.ln_out)
        own = coarse.pos_embed
        with torch.device("cpu"):
            table = own.build(own.embed_dim, own.grid_size)
        self.register_buffer("positions", table, persistent=False)

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"scale={self.scale}"

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.projection(folded(self.before(x), self.scale)) + self.positions
        features: Tensor = self.after(tokens)
        return features


class Merger(nn.Module):
    """Fold, norm and two matrices of a level: [1, patches, D] -> [1, N, C]."""

    def __init__(self, merger: Any, scale: int) -> None:
        super().__init__()
        self.merger, self.scale = merger, scale

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"scale={self.scale}"

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.merger(folded(x, self.scale))
        return features


def _own(model: Any, pixel_values: Tensor) -> Any:
    tiles = torch.ones(1, len(pixel_values), dtype=torch.bool)
    return model.model.get_image_features(pixel_values[None], tiles, return_dict=True)


def _levels(vision: Any, decoder_layers: int) -> tuple[int, ...]:
    return level_layers(vision.deepstack_visual_indexes, vision.num_hidden_layers, decoder_layers)


def _page(image: ImageSpec, tokens: int) -> tuple[str | LayoutItem, ...]:
    """The sequence of one picture, each view behind its marker."""
    views = [
        LayoutItem("visual", start=i * tokens, stop=(i + 1) * tokens) for i in range(image.views)
    ]
    items: list[str | LayoutItem] = []
    for row in range(image.rows):
        for column in range(image.columns):
            marker = f"{FAKE}<row_{row + 1}_col_{column + 1}>"
            items += [marker, views[row * image.columns + column]]
        items.append("\n")
    return (*items, f"\n{FAKE}{GLOBAL}", views[-1], FAKE) if image.views > 1 else tuple(items)
