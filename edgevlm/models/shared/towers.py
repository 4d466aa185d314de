"""Vision encoders of CLIP's kin (CLIP, SigLIP): their numbers, from transformers' vision config."""

from __future__ import annotations

from typing import Any

from edgevlm.errors import PlanError
from edgevlm.graphs.parts import EncoderSpec


def encoder_spec(vision: Any, layers: int, patches: int, class_token: bool = False) -> EncoderSpec:
    """Numbers of an encoder of which the first `layers` layers run.

    Args:
        vision: transformers' vision config.
        layers: Layers up to the selected one.
        patches: Tokens of one view, the class token left out.
        class_token: See `EncoderSpec`.
    """
    heads = vision.num_attention_heads
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
