"""Vision encoders of CLIP's kin (CLIP, SigLIP): numbers from transformers' config, and modules.

Sources: CLIP (arXiv 2103.00020), SigLIP (arXiv 2303.15343).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.bundle.host import SIGNALS
from edgevlm.errors import ModelError, PlanError
from edgevlm.graphs.embedders import ClassPatchEmbedding
from edgevlm.graphs.layers import EncoderLayer, PatchEmbedding
from edgevlm.graphs.parts import EncoderParts, EncoderSpec

# What CLIP was trained with, and its processor's values where a checkpoint names none.
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Tower:
    """A kind of vision encoder.

    Attributes:
        class_token: Whether its first token stands for the whole view.
        embedding: transformers' model -> pixel_values to tokens.
        mean: Of its processor, where a checkpoint names none; of pixels of 0 to 1.
        std: The same.
        crops: Whether its processor crops where it is not told.
    """

    class_token: bool
    embedding: Callable[[Any], nn.Module]
    mean: Any
    std: Any
    crops: bool


TOWERS = {
    "clip_vision_model": Tower(
        class_token=True,
        embedding=lambda tower: ClassPatchEmbedding(tower.embeddings, tower.pre_layrnorm),
        mean=CLIP_MEAN,
        std=CLIP_STD,
        crops=True,
    ),
    "siglip_vision_model": Tower(
        class_token=False,
        embedding=lambda tower: PatchEmbedding(
            tower.embeddings.patch_embedding, tower.embeddings.position_embedding
        ),
        mean=0.5,
        std=0.5,
        crops=False,
    ),
}


def known_tower(vision: Any, *kinds: str) -> Tower:
    """The kind of an encoder, by transformers' vision config.

    Raises:
        PlanError: If it is none of `kinds`.
    """
    if vision.model_type not in kinds:
        known = " or ".join(kinds)
        raise PlanError(f"vision tower '{vision.model_type}' is not supported, expected {known}")
    return TOWERS[vision.model_type]


def check_timm(family: str) -> None:
    """Say what to install where an encoder of timm's cannot be had.

    Raises:
        ModelError: Naming the library.
    """
    missing = [name for name in ("timm", "torchvision") if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"{family} has an encoder of timm, which needs torchvision, and {missing[0]} is not"
            f" installed; pip install timm, and the torchvision that is made for torch"
            f" {torch.__version__}"
        )


class TimmTower(nn.Module):
    """An encoder of timm's, its pixels as tokens, row by row: [1, 3, h_px, w_px] -> [1, N, D]."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor) -> Tensor:
        grid: Tensor = self.encoder.forward_features(pixel_values)  # [1, D, h, w]
        return grid.flatten(2).transpose(1, 2)


class DropClass(nn.Module):
    """The patches without the class token before them: [1, 1 + N, D] -> [1, N, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:]


def projected(tower: Any, spec: EncoderSpec, embedding: nn.Module, projector: Any) -> EncoderParts:
    """The encoder of a LLaVA: layers up to the selected one, its class token dropped, projected.

    Args:
        tower: transformers' vision model.
        spec: Its numbers.
        embedding: Pixels to tokens.
        projector: Tokens to features.
    """
    layers = tuple(EncoderLayer(layer) for layer in tower.encoder.layers)
    drop = DropClass() if spec.class_token else nn.Identity()
    return EncoderParts(
        spec=spec,
        embedding=embedding,
        layers=layers[: spec.layers],
        connector=nn.Sequential(drop, projector),
        fold=nn.Identity(),
        after=layers[spec.layers :],
    )


def keeps_class_token(config: Any, tower: Tower) -> bool:
    """Whether the class token is one of a LLaVA's visual tokens.

    Raises:
        PlanError: If the first token is dropped, and is none.
    """
    keeps = bool(config.vision_feature_select_strategy == "full")
    if not keeps and not tower.class_token:
        raise PlanError(
            f"vision_feature_select_strategy '{config.vision_feature_select_strategy}' drops a"
            " class token, and the vision tower has none; set 'full' in config.json"
        )
    return keeps and tower.class_token


def encoder_spec(vision: Any, layers: int, patches: int, class_token: bool = False) -> EncoderSpec:
    """Numbers of an encoder of which the first `layers` layers run.

    Args:
        vision: transformers' vision config.
        layers: Layers up to the selected one.
        patches: Tokens of one view, the class token left out.
        class_token: See `EncoderSpec`.

    Raises:
        PlanError: If its heads do not divide.
    """
    heads = vision.num_attention_heads
    if vision.hidden_size % heads:
        raise PlanError(
            f"num_attention_heads {heads} of the encoder does not divide hidden_size"
            f" {vision.hidden_size}; correct config.json"
        )
    return EncoderSpec(
        layers=layers,
        patches=patches,
        width=vision.hidden_size,
        heads=heads,
        head_size=vision.hidden_size // heads,
        class_token=class_token,
    )


def left_out(config: Any, all_layers: bool) -> tuple[str, ...]:
    """Weights of a tower that its selected layer does not need: all that follows it.

    Args:
        config: transformers' config.
        all_layers: A method reads a signal of the last layer, so that no layer is left out.
    """
    tower, depth = "model.vision_tower.", config.vision_config.num_hidden_layers
    layers = () if all_layers else range(selected_layers(config), depth)
    after = tuple(f"{tower}encoder.layers.{layer}." for layer in layers)
    return *after, f"{tower}post_layernorm.", f"{tower}head."


def selected_layers(config: Any) -> int:
    """Encoder layers up to `vision_feature_layer`; 0 is their input, -1 the last one's output.

    Raises:
        PlanError: If it is none of the encoder's layers, or several.
    """
    layer, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if isinstance(layer, list | tuple) and len(layer) == 1:
        layer = layer[0]
    if not isinstance(layer, int):
        raise PlanError(f"vision_feature_layer is {layer}: several are not supported, only one is")
    count = depth + 1 + layer if layer < 0 else layer
    if not 0 <= count <= depth:
        raise PlanError(f"vision_feature_layer {layer} is none of the {depth} layers")
    return int(count)


def whole_spec(tokens: int, width: int, reason: str) -> EncoderSpec:
    """Numbers of an encoder that is one module here, without layers that a method could work on.

    Args:
        tokens: What it gives of a view before the connector.
        width: Channels of each.
        reason: Why it has no layers, as the end of a refusal.
    """
    return EncoderSpec(
        layers=0,
        patches=tokens,
        width=width,
        heads=1,
        head_size=width,
        unmergeable=reason,
        lacking=tuple((name, reason) for name in SIGNALS),
    )
