"""LLaVA-OneVision (arXiv 2408.03326): SigLIP encoder, two-layer projector, Qwen2.

One view is the base image; R x C is the base image followed by one grid of R*C tiles in raster
order over all tiles, as AnyRes packs it, each row closed by the learned newline (an extra row of
the embedding table). Frames of a clip are pooled 2x2 bilinearly and closed by one newline.
Differences from the original: the grid is fixed by the recipe and the picture fills it without
padding, so nothing is unpadded; when tokens are removed rows lose their meaning and one newline at
the end remains.
"""

from __future__ import annotations

import copy
from math import ceil, sqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.plan import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import DecoderLayer, EncoderLayer, FinalNorm, PatchEmbedding
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import RESAMPLE, TABLE_ROW, Description, ModelParts, three
from edgevlm.recipe import Recipe

NEWLINE = LayoutItem(TABLE_ROW, start=0)


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a LLaVA-OneVision checkpoint; see `Description`.

    Raises:
        PlanError: For a feature layer, a selection or a tile grid that the static form has not.
    """
    vision, (rows, columns) = config.vision_config, recipe.tiles
    _check(config, rows, columns)
    side = vision.image_size // vision.patch_size
    image = ImageSpec(
        height=vision.image_size,
        width=vision.image_size,
        rows=rows,
        columns=columns,
        global_view="first",
        frames=recipe.frames,
        resample=RESAMPLE[processor.get("resample", 3)],
        mean=three(processor.get("image_mean", 0.5)),
        std=three(processor.get("image_std", 0.5)),
    )
    clip = recipe.frames > 1
    if clip:
        side = ceil(side / 2)
        grids: tuple[tuple[int, int], ...] = ((side, side),) * recipe.frames
    else:
        grids = ((side, side),) + (((rows * side, columns * side),) if image.views > 1 else ())
    shape = VisualShape(grids, config.text_config.hidden_size, *image.tiling)
    flat: tuple[str | LayoutItem, ...] = (LayoutItem("visual", start=0, stop=shape.tokens), NEWLINE)
    return Description(
        image=image,
        view_tokens=side * side,
        shape=shape,
        full_image=flat if clip or image.views == 1 else newline_rows(side, rows, columns),
        reduced_image=flat,
        placeholder="<video>" if clip else "<image>",
        content_type="video" if clip else "image",
    )


def pieces(model: Any, description: Description) -> ModelParts:
    """Static pieces over the weights of `model`; see `ModelParts`."""
    core, config = model.model, model.config
    tower, text = core.vision_tower, config.text_config
    depth = len(tower.encoder.layers)
    last = config.vision_feature_layer
    kept = depth + 1 + last if last < 0 else last
    first = PatchEmbedding(tower.embeddings.patch_embedding, tower.embeddings.position_embedding)
    image = description.image
    side = config.vision_config.image_size // config.vision_config.patch_size
    pool = Pool(side) if image.frames > 1 else nn.Identity()
    return ModelParts(
        vision=(
            first,
            *(EncoderLayer(layer) for layer in tower.encoder.layers[:kept]),
            nn.Sequential(core.multi_modal_projector, pool),
        ),
        pack=Pack(image.rows, image.columns, side) if image.views > image.frames else nn.Identity(),
        decoder=tuple(
            DecoderLayer(layer, text.num_attention_heads, text.num_key_value_heads)
            for layer in core.language_model.layers
        ),
        norm=FinalNorm(core.language_model.norm),
        table=(core.language_model.embed_tokens.weight, core.image_newline[None]),
        head=model.lm_head.weight,
        language_model=core.language_model,
        # A copy: a buffer that two pieces share has one name only, and a trace may take the other.
        fold=copy.deepcopy(pool),
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder and packing, newlines left out: [P, 3, h_px, w_px] -> [1, N, C]."""
    core, image = model.model, description.image
    if image.frames > 1:
        clip = core.get_video_features(pixel_values[None], return_dict=True).pooler_output
        return clip[:, :-1]
    if image.views == 1:  # as with several images: no AnyRes tiles
        states = core.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        return core.multi_modal_projector(states[model.config.vision_feature_layer])
    size = torch.tensor([[image.rows * image.height, image.columns * image.width]])
    one = torch.tensor([1])
    packed = core.get_image_features(
        pixel_values[None], size, batch_num_images=one, return_dict=True
    )
    tokens = packed.pooler_output[0]
    side = image.height // model.config.vision_config.patch_size
    base, grid = tokens[: side * side], tokens[side * side :]
    grid = grid.reshape(image.rows * side, -1, tokens.shape[-1])[:, :-1]
    return torch.cat((base, grid.flatten(0, 1)))[None]


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The views f32 [P, 3, h_px, w_px] of the model's own processor, offered this grid alone."""
    grid = [image.rows * image.height, image.columns * image.width]
    made = processor([picture], image_grid_pinpoints=[grid], return_tensors="np")
    return made["pixel_values"][0][: image.views]  # one view: the base image


def newline_rows(side: int, rows: int, columns: int) -> tuple[str | LayoutItem, ...]:
    """The sequence of a packed image: base image, then each row of the grid with a newline."""
    base, width = side * side, columns * side
    items: list[str | LayoutItem] = [LayoutItem("visual", start=0, stop=base)]
    for row in range(rows * side):
        start = base + row * width
        items += [LayoutItem("visual", start=start, stop=start + width), NEWLINE]
    return tuple(items)


class Pack(nn.Module):
    """Tiles to one raster grid: [1, (1 + R*C)*h*w, C], base image first -> [1, same, C]."""

    def __init__(self, rows: int, columns: int, side: int) -> None:
        super().__init__()
        self.rows, self.columns, self.side = rows, columns, side

    def forward(self, x: Tensor) -> Tensor:
        n = self.side * self.side
        base, tiles = x[:, :n], x[0, n:]
        grid = tiles.view(self.rows, self.columns, self.side, self.side, -1).transpose(1, 2)
        return torch.cat((base, grid.reshape(1, -1, x.shape[-1])), dim=1)


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
    if not isinstance(config.vision_feature_layer, int):
        raise PlanError("several vision feature layers are not supported, only one is")
    if config.vision_feature_select_strategy != "full":
        strategy = config.vision_feature_select_strategy
        raise PlanError(f"vision_feature_select_strategy '{strategy}' is not supported, 'full' is")
    size = config.vision_config.image_size
    known = {(h // size, w // size) for h, w in config.image_grid_pinpoints}
    if rows * columns > 1 and (rows, columns) not in known:
        raise PlanError(f"tiles {rows}x{columns} is none of the model's grids {sorted(known)}")
    # The original shrinks a grid of more than about 1.1^2 * max tiles (modeling, AnyRes packing).
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    if sqrt(rows * columns / most) > 1.1:
        raise PlanError(f"tiles {rows}x{columns} is more than this model's {most} tiles")
