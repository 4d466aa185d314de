"""Granite 4 Vision's projector: a Q-Former whose queries see a window of patches each.

A view's patches are cut into windows of w x w; each has q x q queries, which are learned ones plus
the patches, made fewer in one of two ways: averaged, or every other one of them. A query attends to
the others of its window, then to the window's patches, and becomes a token.

Rewrites, each exact: windows of one view are a batch, so that no tensor has more than five
dimensions; averages by `interpolate` are two products with a constant matrix.

Sources: Q-Former (arXiv 2301.12597, section 3.1); transformers'
`models/granite4_vision/modeling_granite4_vision.py` and `models/blip_2/modeling_blip_2.py`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import LEVELS
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import scaled
from edgevlm.graphs.ops import attention
from edgevlm.models.family import Description


class WindowQFormer(nn.Module):
    """Patches of a view [1, side^2, D] -> tokens [1, n*(n+1), C]: n rows of n, each with a newline.

    Args:
        own: transformers' module.
        drop: What takes the class token off, where there is one.
        newline: What closes a row [C].
        scale: Factor of all.
    """

    averages: Tensor

    def __init__(self, own: Any, drop: nn.Module, newline: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        # One of its own: a weight of two modules of a block would have one name.
        self.newline = nn.Parameter(newline.detach().clone(), requires_grad=False)
        self.scale = scale
        self.drop, self.norm, self.out = drop, own.norm, own.out_linear
        self.qformer, self.query, self.places = own.qformer, own.query, own.image_positions
        self.side, self.window, self.queries = own.image_side, own.window_side, own.query_side
        self.offset = own._spatial_offset
        if self.offset is None:
            with torch.device("cpu"):
                count = self.side // self.window * self.queries
                rows = nn.functional.adaptive_avg_pool1d(torch.eye(self.side)[None], count)
            self.register_buffer("averages", rows[0].T.contiguous(), persistent=False)

    def extra_repr(self) -> str:
        """What the trace depends on beside weights, for `signature`."""
        return f"{self.side}, {self.window}, {self.queries}, {self.offset}, {self.scale}"

    def forward(self, x: Tensor) -> Tensor:
        patches = self.norm(self.drop(x))
        queries = self.query + _windows(self._fewer(patches), self.queries)
        seen = _windows(patches.reshape(self.side, self.side, -1), self.window) + self.places
        tokens = self.out(_raster(self._answered(queries, seen), self.queries))
        rows = torch.cat((tokens, self.newline.expand(len(tokens), 1, -1)), dim=1)
        return scaled(rows.reshape(1, -1, rows.shape[-1]), self.scale)

    def _fewer(self, patches: Tensor) -> Tensor:
        """A patch for each query: [1, side^2, D] -> [n, n, D]."""
        if self.offset is not None:
            half = self.side // 2
            row, column = divmod(self.offset, 2)
            return patches.reshape(half, 2, half, 2, -1)[:, row, :, column]
        rows = self.averages @ patches.reshape(self.side, -1)
        return self.averages @ rows.reshape(len(self.averages), self.side, -1)

    def _answered(self, queries: Tensor, seen: Tensor) -> Tensor:
        """Queries [W, q^2, D] of windows, from their patches [W, w^2, D]."""
        x = self.qformer.layernorm(queries)
        for layer in self.qformer.encoder.layer:
            x = _attended(layer.attention, x, x)
            if layer.has_cross_attention:
                x = _attended(layer.crossattention, x, seen)
            x = layer.feed_forward_chunk_query(x)
        return x


class MeanOfPatches(nn.Module):
    """Values of patches to values of tokens, their mean, and 0 for newlines.

    [1, patches^2, E] -> [1, side*(side+1), E].
    """

    averages: Tensor

    def __init__(self, patches: int, side: int) -> None:
        super().__init__()
        with torch.device("cpu"):
            rows = nn.functional.adaptive_avg_pool1d(torch.eye(patches)[None], side)
        self.register_buffer("averages", rows[0].T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        side, patches = self.averages.shape
        rows = self.averages @ x.reshape(patches, -1)
        means = self.averages @ rows.reshape(side, patches, -1)
        return nn.functional.pad(means, (0, 0, 0, 1)).reshape(1, side * (side + 1), -1)


def patch_side(vision: Any) -> int:
    """Patches of a view's side."""
    return int(vision.image_size // vision.patch_size)


def token_side(config: Any) -> int:
    """Tokens of a view's side.

    Raises:
        PlanError: If the windows do not make it.
    """
    patches, rate = patch_side(config.vision_config), config.downsample_rate
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


def projectors(config: Any) -> dict[int, tuple[int, str]]:
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


def read_layers(config: Any) -> int:
    """Layers of the encoder up to the last one that is read."""
    return projectors(config)[0][0]


def own_tokens(model: Any, pixel_values: Tensor, description: Description) -> dict[int, Tensor]:
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
        for target, (state, name) in projectors(model.config).items()
    }


def _attended(block: Any, x: Tensor, seen: Tensor) -> Tensor:
    own = block.attention
    mixed = attention(own.query(x), own.key(seen), own.value(seen), own.num_attention_heads)
    added: Tensor = block.output(mixed, x)
    return added


def _windows(grid: Tensor, size: int) -> Tensor:
    """A grid [n, n, D] -> its windows [W, size^2, D], each in raster order."""
    count = grid.shape[0] // size
    cut = grid.reshape(count, size, count, size, -1).transpose(1, 2)
    return cut.reshape(count * count, size * size, -1)


def _raster(windows: Tensor, size: int) -> Tensor:
    """The same back: [W, size^2, D] -> [n, n, D]."""
    count = round(windows.shape[0] ** 0.5)
    grid = windows.reshape(count, count, size, size, -1).transpose(1, 2)
    return grid.reshape(count * size, count * size, -1)
