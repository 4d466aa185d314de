"""MiniCPM-V 4.6: an encoder that folds 2x2 patches inside and again behind it, over Qwen3.5.

A picture is one view of `--size`, 448x448 pixels unless told, which stands for 64 tokens: behind
one of its first layers the patches of each 2x2 window see each other and become one, and so do
2x2 of these at the end. Positions are a learned table, of which a patch has the nearest row.

Source: transformers' `models/minicpmv4_6/modeling_minicpmv4_6.py`. Limits: pictures are not cut
into slices; mode `4x`, which skips the inner fold, and clips are refused. MiniCPM-V 4.7 is none of
these: it gives the marks around a picture places in its grid, which no layout says.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec, LayoutItem
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.ops import attention
from edgevlm.graphs.parts import EncoderParts, EncoderSpec, ModelParts
from edgevlm.graphs.visual_shape import VisualShape
from edgevlm.models.family import RESAMPLE, Description
from edgevlm.models.shared.llama import decoder_parts, decoder_spec
from edgevlm.models.shared.preprocessing import check_resized, normalization
from edgevlm.models.shared.views import check_one_view
from edgevlm.recipe import Recipe

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
# What its tokenizers call them; a plan compares the prompt with the checkpoint's own processor.
IMAGE, START, END = "<|image_pad|>", "<image>", "</image>"
NUMBER_START, NUMBER_END = "<image_id>", "</image_id>"
SCALE = 448  # pixels: a picture is brought to as many as a square of this side has
FOLD = 2  # of each of the two folds, each way
FOLDED = "its patches are folded before its last layer"
LACKING = (("early_cls_attention", FOLDED), ("patch_entropy", FOLDED))


def describe(config: Any, processor: dict[str, Any], recipe: Recipe) -> Description:
    """Numbers of a MiniCPM-V 4.6 checkpoint; see `Description`.

    Raises:
        PlanError: For a clip, slices, a size, a mode, a processor or a decoder that the static form
            has not.
    """
    check_one_view(recipe, config.model_type)
    _check_folds(config, processor)
    vision, image = config.vision_config, _image(config, processor, recipe)
    rows, columns = (side // vision.patch_size for side in (image.height, image.width))
    tokens = rows // FOLD**2, columns // FOLD**2
    decoder = decoder_spec(config.text_config, plain=True)
    visual = LayoutItem("visual", start=0, stop=tokens[0] * tokens[1])
    number = (NUMBER_START, LayoutItem("number"), NUMBER_END)
    items = (*(number if processor.get("use_image_id", True) else ()), START, visual, END)
    mark = processor.get("image_token", IMAGE)
    return Description(
        image=image,
        view_tokens=tokens[0] * tokens[1],
        shape=VisualShape((tokens,), decoder.width, *image.tiling),
        encoder=EncoderSpec(
            layers=vision.num_hidden_layers,
            patches=rows * columns,
            width=vision.hidden_size,
            heads=vision.num_attention_heads,
            head_size=vision.hidden_size // vision.num_attention_heads,
            unmergeable="it folds windows of patches between them, which needs all patches",
            lacking=LACKING,
            folded=(vision.insert_layer_id, rows * columns // FOLD**2),
        ),
        decoder=decoder,
        full_image=items,
        reduced_image=items,
        placeholder=mark,
        visual_token=mark,
    )


def parts(model: Any, description: Description) -> ModelParts:
    """Static modules over the weights of `model`; see `ModelParts`."""
    core, image = model.model, description.image
    tower, vision = core.vision_tower, model.config.vision_config
    grid = image.height // vision.patch_size, image.width // vision.patch_size
    folded = grid[0] // FOLD, grid[1] // FOLD
    layers: list[nn.Module] = [EncoderLayer(layer) for layer in tower.encoder.layers]
    at = vision.insert_layer_id
    layers[at] = nn.Sequential(layers[at], WindowFold(tower.vit_merger, grid))
    return ModelParts(
        encoder=EncoderParts(
            spec=description.encoder,
            embedding=NearestEmbedding(tower.embeddings, grid),
            layers=tuple(layers),
            connector=FoldedTokens(tower.post_layernorm, core.merger.mlp[0], folded),
            fold=MeanOfBlocks(folded),
        ),
        pack=nn.Identity(),
        decoder=decoder_parts(core.language_model, description.decoder),
        table=(core.language_model.embed_tokens.weight,),
        head=model.lm_head.weight,
    )


def reference_features(model: Any, pixel_values: Tensor, description: Description) -> Tensor:
    """The model's own encoder: f32 [1, 3, h_px, w_px] -> [1, N, C]."""
    side = model.config.vision_config.patch_size
    rows, columns = pixel_values.shape[2] // side, pixel_values.shape[3] // side
    patches = pixel_values[0].reshape(3, rows, side, columns, side).transpose(1, 2)
    packed, sizes = patches.reshape(1, 3, side, -1), torch.tensor([[rows, columns]])
    found = model.model.get_image_features(packed, sizes, return_dict=True).pooler_output
    return torch.cat(tuple(found))[None]


def processor_options(image: ImageSpec) -> dict[str, Any]:
    """Options of the model's own processor: a picture of the size keeps it, uncut."""
    return {"slice_mode": False}


def processor_views(processor: Any, picture: Image.Image, image: ImageSpec) -> Any:
    """The view f32 [1, 3, h_px, w_px] of the model's own processor.

    It chooses a size by the picture's shape: where that is another, it gets the picture at ours.
    """
    side, options = processor.patch_size, processor_options(image)
    sizes = [[image.height // side, image.width // side]]
    inputs = processor([picture], return_tensors="np", **options)
    if inputs["target_sizes"].tolist() != sizes:
        resized = picture.resize((image.width, image.height), processor.resample)
        inputs = processor([resized], return_tensors="np", **options)
    patches = inputs["pixel_values"].reshape(3, side, *sizes[0], side)
    return patches.transpose(0, 2, 1, 3, 4).reshape(1, 3, image.height, image.width)


class NearestEmbedding(nn.Module):
    """Patches with the nearest row of a square table: [1, 3, h_px, w_px] -> [1, N, D]."""

    def __init__(self, embeddings: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        from transformers.vision_utils import get_vision_nearest_position_ids

        self.patch = embeddings.patch_embedding
        with torch.device("cpu"):
            side = embeddings.num_patches_per_side
            nearest = get_vision_nearest_position_ids(torch.tensor([grid]), side)
        table = embeddings.position_embedding.weight.detach()
        self.positions = nn.Parameter(table[nearest.to(table.device)], requires_grad=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.patch(pixel_values).flatten(2).transpose(1, 2) + self.positions


class WindowFold(nn.Module):
    """The inner fold: patches of a 2x2 window see each other, then become one, [1, N, D] -> N / 4.

    What two linear layers make of the four is added to their mean.
    """

    def __init__(self, merger: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        self.merger, self.grid, self.heads = merger, grid, merger.self_attn.num_heads

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"grid={self.grid}"

    def forward(self, x: Tensor) -> Tensor:
        merger, attn = self.merger, self.merger.self_attn
        x = blocks(x, self.grid)  # [W, 4, D]
        h = merger.layer_norm1(x)
        mixed = attention(attn.q_proj(h), attn.k_proj(h), attn.v_proj(h), self.heads)
        x = x + attn.out_proj(mixed)
        wide = merger.pre_norm(x.reshape(1, x.shape[0], -1))  # [1, W, 4 * D]
        fed: Tensor = merger.linear_2(merger.act(merger.linear_1(wide)))
        return fed + x.mean(1).unsqueeze(0)


class FoldedTokens(nn.Module):
    """Last norm, fold and two linear layers: [1, N, D] -> tokens in raster order [1, N / 4, C]."""

    def __init__(self, norm: nn.Module, merger: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        self.norm, self.merger, self.grid = norm, merger, grid

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"grid={self.grid}"

    def forward(self, x: Tensor) -> Tensor:
        merger, wide = self.merger, blocks(self.norm(x), self.grid)
        h = merger.linear_1(merger.pre_norm(wide.reshape(1, wide.shape[0], -1)))
        tokens: Tensor = merger.linear_2(nn.functional.gelu(h))
        return tokens


class MeanOfBlocks(nn.Module):
    """Values of patches to values of tokens, their mean: [1, N, E] -> [1, N / 4, E]."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return blocks(x, self.grid).mean(1).unsqueeze(0)


def blocks(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """2x2 neighbours of a grid in raster order: [1, rows * columns, D] -> [blocks, 4, D]."""
    rows, columns = grid
    apart = x.reshape(rows // FOLD, FOLD, columns // FOLD, FOLD, -1)
    return apart.transpose(1, 2).reshape(rows * columns // FOLD**2, FOLD**2, -1)


def _image(config: Any, processor: dict[str, Any], recipe: Recipe) -> ImageSpec:
    """Preprocessing to the recipe's size.

    Raises:
        PlanError: If the processor never makes a picture of that size.
    """
    check_resized(processor)
    patch, scale = config.vision_config.patch_size, processor.get("scale_resolution", SCALE)
    if processor.get("patch_size", patch) != patch:
        raise PlanError(
            f"the image processor's patch_size is {processor['patch_size']}, the encoder's {patch};"
            " correct preprocessor_config.json"
        )
    step = patch * FOLD**2
    height, width = recipe.size or _size(1.0, scale, step)
    if (height, width) != (kept := _size(width / height, scale, step)):
        raise PlanError(
            f"size {height}x{width} is none that the image processor makes of a picture: it makes"
            f" {kept[0]}x{kept[1]} of this shape; give --size {kept[0]}x{kept[1]}"
        )
    mean, std = normalization(processor, 0.5, 0.5)
    return ImageSpec(
        height=height,
        width=width,
        rows=1,
        columns=1,
        global_view="first",
        frames=1,
        resample=RESAMPLE[processor.get("resample", 3)],
        mean=mean,
        std=std,
    )


def _size(shape: float, scale: int, step: int) -> tuple[int, int]:
    """Height and width that the processor gives to a picture of a shape (width / height)."""
    height = int(scale / sqrt(shape))
    sides = height, int(height * shape)
    return max(round(sides[0] / step), 1) * step, max(round(sides[1] / step), 1) * step


def _check_folds(config: Any, processor: dict[str, Any]) -> None:
    """Refuse folds of another kind than the two of 2x2.

    Raises:
        PlanError: Naming the key and its value.
    """
    vision = config.vision_config
    modes = config.downsample_mode, processor.get("downsample_mode", "16x")
    wanted = {
        "downsample_mode": (modes, ("16x", "16x")),
        "merge_kernel_size": (tuple(config.merge_kernel_size), (FOLD, FOLD)),
        "merger_times": (config.merger_times, 1),
        "window_kernel_size": (tuple(vision.window_kernel_size), (FOLD, FOLD)),
    }
    for key, (found, expected) in wanted.items():
        if found != expected:
            raise PlanError(f"{key} {found} is not supported, only {expected} is")
    if not 0 <= vision.insert_layer_id < vision.num_hidden_layers - 1:
        raise PlanError(
            f"insert_layer_id {vision.insert_layer_id} is none of the layers before the last of"
            f" {vision.num_hidden_layers}; correct config.json"
        )
