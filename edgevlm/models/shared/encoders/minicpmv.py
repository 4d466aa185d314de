"""The encoder of MiniCPM-V 4.6 and 4.7, which folds 2x2 patches inside and again at its end.

Behind one of its layers the patches of each 2x2 window see each other and become one, and so do 2x2
of these in the connector. In mode `4x` there is only the connector's fold, and four times as many
tokens. Positions are a learned table, of which a patch has the nearest row.

Rewrite, exact: windows of one view are a batch, and nearest rows are taken once, here.

Source: transformers' `models/minicpmv4_6/modeling_minicpmv4_6.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.errors import PlanError
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.ops import attention
from edgevlm.graphs.parts import EncoderParts, EncoderSpec

FOLD = 2  # of each of the two folds, each way
WINDOWS = "it folds windows of patches between them, which needs all patches"
FOLDED = "its patches are folded before its last layer"
LACKING = (("early_cls_attention", FOLDED), ("patch_entropy", FOLDED))


def side_of_token(config: Any) -> int:
    """Patches of a side that become a token."""
    return FOLD if config.downsample_mode == "4x" else FOLD**2


def encoder_spec(config: Any, patches: int) -> EncoderSpec:
    """Numbers of the encoder, of so many patches a view."""
    vision, folds = config.vision_config, config.downsample_mode != "4x"
    return EncoderSpec(
        layers=vision.num_hidden_layers,
        patches=patches,
        width=vision.hidden_size,
        heads=vision.num_attention_heads,
        head_size=vision.hidden_size // vision.num_attention_heads,
        unmergeable=WINDOWS if folds else "",
        lacking=LACKING if folds else (),
        folded=(vision.insert_layer_id, patches // FOLD**2) if folds else None,
    )


def encoder_parts(core: Any, spec: EncoderSpec, grid: tuple[int, int]) -> EncoderParts:
    """Static modules over the weights of transformers' model, for a grid of patches."""
    tower, folded = core.vision_tower, grid
    layers: list[nn.Module] = [EncoderLayer(layer) for layer in tower.encoder.layers]
    if spec.folded:
        (at, _), folded = spec.folded, (grid[0] // FOLD, grid[1] // FOLD)
        layers[at] = nn.Sequential(layers[at], WindowFold(tower.vit_merger, grid))
    return EncoderParts(
        spec=spec,
        embedding=NearestEmbedding(tower.embeddings, grid),
        layers=tuple(layers),
        connector=FoldedTokens(tower.post_layernorm, core.merger.mlp[0], folded),
        fold=MeanOfBlocks(folded),
    )


def reference_features(model: Any, pixel_values: Tensor, description: Any) -> Tensor:
    """The model's own encoder: f32 [P, 3, h_px, w_px] -> [1, P*N, C]."""
    side = model.config.vision_config.patch_size
    views, grid = len(pixel_values), [size // side for size in pixel_values.shape[2:]]
    patches = pixel_values.reshape(views, 3, grid[0], side, grid[1], side)
    packed = patches.permute(1, 3, 0, 2, 4, 5).reshape(1, 3, side, -1)
    sizes = torch.tensor([grid] * views)
    found = model.model.get_image_features(packed, sizes, return_dict=True).pooler_output
    return torch.cat(tuple(found))[None]


def check_folds(config: Any, processor: dict[str, Any]) -> None:
    """Refuse folds of another kind than one or two of 2x2.

    Raises:
        PlanError: Naming the key and its value.
    """
    vision = config.vision_config
    mode, modes = config.downsample_mode, ("16x", "4x")
    own = processor.get("downsample_mode", "16x")
    if mode not in modes or own != mode:
        raise PlanError(
            f"downsample_mode is {mode} in config.json and {own} in the processor's, expected"
            f" one of {', '.join(modes)} in both; make them one"
        )
    wanted = {
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
