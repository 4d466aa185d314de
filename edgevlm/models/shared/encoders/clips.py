"""Static modules of encoders that attend over all frames of a clip at once: one call is a clip.

    a kernel over several frames (Conv3d)  -> one over their colours, a group of frames a batch row
    the clip, frames before colours        -> a view of 3 * frames channels, as `ImageSpec` has it
    the norm and layers of ViT             -> `EncoderLayer`, so that tokens can merge between them

Shapes: F frames, t frames of a group (tubelet), N tokens of a clip: (F / t) * h * w, groups first,
each in raster order.

Sources: VideoMAE (arXiv 2203.12602), section 3.3; V-JEPA 2 (arXiv 2506.09985), section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import PlanError
from edgevlm.graphs.layers import EncoderLayer
from edgevlm.graphs.ops import attention
from edgevlm.recipe import Recipe


@dataclass(frozen=True)
class ClipGrid:
    """Patches of a clip: groups of frames, rows and columns."""

    groups: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """Tokens of a clip."""
        return self.groups * self.rows * self.columns


def clip_grid(frames: int, tubelet: int, side: int, patch: int) -> ClipGrid:
    """The grid of a clip of square frames.

    Raises:
        PlanError: If frames do not make whole groups, or patches are larger than a frame.
    """
    sizes = (frames, tubelet, side, patch)
    if not all(type(size) is int and size > 0 for size in sizes):
        raise PlanError(
            f"{frames} frames of {side} pixels, in groups of {tubelet} and patches of {patch}: only"
            " squares and whole numbers are supported"
        )
    if frames % tubelet or frames < 2 * tubelet or patch > side:
        raise PlanError(
            f"{frames} frames in groups of {tubelet}, patches of {patch} pixels in frames of"
            f" {side}: expected two whole groups at least, and a whole patch; correct config.json"
        )
    return ClipGrid(frames // tubelet, side // patch, side // patch)


def check_frames(recipe: Recipe, frames: int, key: str) -> None:
    """Refuse a recipe whose clips are not those that the encoder was trained on.

    Args:
        recipe: What is asked for.
        frames: The config's number.
        key: Its name there.

    Raises:
        PlanError: With the number.
    """
    if recipe.frames != frames:
        got = "" if recipe.frames == 1 else f", got --frames {recipe.frames}"
        raise PlanError(
            f"the encoder reads clips of {frames} frames, all at once ({key} of config.json){got};"
            f" add --frames {frames}"
        )


def class_names(config: Any) -> tuple[str, ...]:
    """The names of a classifier's classes, in their order; a number has its own as a name.

    Raises:
        PlanError: If `id2label` does not name as many.
    """
    names = {int(index): str(name) for index, name in config.id2label.items()}
    if sorted(names) != list(range(config.num_labels)) or not names:
        raise PlanError(
            f"id2label names {len(names)} classes, expected {config.num_labels}, from 0 on; correct"
            " config.json"
        )
    return tuple(names[index] for index in range(len(names)))


def clip_frames(pixel_values: Tensor) -> Tensor:
    """Views [P, 3 * F, h_px, w_px] as transformers takes clips: [P, F, 3, h_px, w_px]."""
    views, channels, *size = pixel_values.shape
    return pixel_values.reshape(views, channels // 3, 3, *size)


class TubeletEmbedding(nn.Module):
    """Tokens of a clip: pixel_values f32 [1, 3 * F, h_px, w_px] -> [1, N, C].

    Args:
        kernel: The original's, over t frames.
        positions: Added to the tokens, [1, N, C]; None for none.
    """

    positions: Tensor

    def __init__(self, kernel: nn.Conv3d, positions: Tensor | None = None) -> None:
        super().__init__()
        frames, side = kernel.kernel_size[:2]
        width = kernel.out_channels
        patch = nn.Conv2d(3 * frames, width, side, side, device="meta")
        weight = kernel.weight.detach().transpose(1, 2).flatten(1, 2)
        patch.weight = nn.Parameter(weight, requires_grad=False)
        patch.bias = kernel.bias
        self.patch, self.added = patch, positions is not None
        if positions is not None:
            self.register_buffer("positions", positions.detach())

    def forward(self, pixel_values: Tensor) -> Tensor:
        channels, height, width = self.patch.in_channels, *pixel_values.shape[2:]
        groups = pixel_values.reshape(-1, channels, height, width)
        patches = self.patch(groups).flatten(2).transpose(1, 2)  # [F / t, h * w, C]
        tokens = patches.reshape(1, -1, patches.shape[-1])
        return tokens + self.positions if self.added else tokens


class VideoMAELayer(EncoderLayer):
    """ViT's encoder layer as VideoMAE names it, [1, N, C] -> same."""

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        self.layer = layer
        inside = layer.attention.attention
        self.heads, self.head_size = inside.num_attention_heads, inside.attention_head_size

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inside, h = self.layer.attention.attention, self.layer.layernorm_before(x)
        return inside.query(h), inside.key(h), inside.value(h)

    def attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        mixed = attention(query, key, value, self.heads, bias)
        attended: Tensor = x + self.layer.attention.output.dense(mixed)
        return attended

    def feed(self, x: Tensor) -> Tensor:
        h = self.layer.layernorm_after(x)
        fed: Tensor = x + self.layer.output.dense(self.layer.intermediate(h))
        return fed

    def query_key(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        inside = self.layer.attention.attention
        return self.layer.layernorm_before, inside.query, inside.key


class MeanHead(nn.Module):
    """A norm, the mean of all tokens, and what makes logits of it: [1, N, C] -> [1, E].

    Args:
        before: The norm of each token, or the identity.
        after: What follows the mean: a norm and a linear layer, or the identity.
    """

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.after(self.before(x).mean(1))
        return embedding


class FirstHead(nn.Module):
    """The first token, normed and classified: [1, N, C] -> [1, E]."""

    def __init__(self, norm: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.norm, self.classifier = norm, classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(x[:, :1]))
        return logits[:, 0]


def clip_image(image: ImageSpec, frames: int) -> ImageSpec:
    """The preprocessing of a picture as that of a clip whose frames are one view."""
    return replace(image, frames=frames, depth=frames)
