"""Granite 4 Vision: SigLIP, a window Q-Former for each of several depths, and Granite."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.granite import CHAT, FIRST, ROLES, granite_ids, granite_tokenizer
from checkpoints.shared.llava import pinpoints
from checkpoints.shared.presets import TINY_TEXT, TINY_VISION

TEXT = dict(model_type="granite4_vision_text", hidden_act="silu", rms_norm_eps=1e-5,
    tie_word_embeddings=True, rope_theta=10000000.0)  # fmt: skip
QFORMER = dict(model_type="blip_2_qformer", num_hidden_layers=1, cross_attention_frequency=1,
    max_position_embeddings=2048, use_qformer_text_input=False)  # fmt: skip
PRESETS = {
    # From memory: transformers' defaults name no projectors, and no published config was at hand.
    "granite-4.0-3b-vision": dict(dtype="bfloat16", rate="4/8",
        layers=[[-19, 9], [-13, 6], [-7, 3], [-1, 0]], spatial=[12, 15, 18, 21],
        grids=[(r, c) for r in range(1, 5) for c in range(1, 5) if r * c <= 8],
        vision=dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
            num_attention_heads=16, image_size=384, patch_size=16,
            hidden_act="gelu_pytorch_tanh"),
        qformer=dict(intermediate_size=3072),
        text=TEXT | dict(hidden_size=2560, intermediate_size=8192, num_hidden_layers=40,
            num_attention_heads=40, num_key_value_heads=8, vocab_size=100352,
            max_position_embeddings=131072, embedding_multiplier=12.0, logits_scaling=10.0,
            residual_multiplier=0.22, attention_multiplier=0.015625)),
    "tiny-granite4-vision": dict(dtype="float32", rate="2/4", layers=[[-2, 2], [-1, 0]],
        spatial=[1, 3, 4, 5], grids=[(1, 1), (1, 2), (2, 1), (2, 2)],
        vision=TINY_VISION | dict(num_hidden_layers=3, image_size=64, patch_size=8),
        qformer=dict(intermediate_size=128),
        text=TEXT | TINY_TEXT | dict(num_hidden_layers=6, max_position_embeddings=4096,
            embedding_multiplier=3.0, logits_scaling=4.0, residual_multiplier=0.5,
            attention_multiplier=0.3)),
}  # fmt: skip
GAINS = {"query": 1.4, "key": 1.4, "value": 1.5, "dense": 1.2, "out_linear": 1.0}
STDS = {"query_tokens": 1.0, "image_positions": 0.5, "LayerNorm": 1.0, "layernorm": 1.0}


def tokenizer(preset: dict) -> Tokenizer:
    """Granite's, with a word for pictures."""
    return granite_tokenizer(preset, ["<image>"])


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    text = preset["text"] | granite_ids(tokenizer)
    vision = preset["vision"] | {"model_type": "siglip_vision_model"}
    made = vlm_config("Granite4Vision", "granite4_vision", preset, text, vision)
    return made | {
        "image_token_index": tokenizer.token_to_id("<image>"),
        "image_grid_pinpoints": pinpoints(preset["grids"], vision["image_size"]),
        "vision_feature_select_strategy": "full",
        "downsample_rate": preset["rate"],
        "deepstack_layer_map": preset["layers"],
        "spatial_target_layers": preset["spatial"],
        "spatial_vision_layer": -1,
        "qformer_config": QFORMER | preset["qformer"],
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, vision = config["text_config"], preset["vision"]
    size = vision["image_size"]
    image = image_processor("LlavaNext", "Granite4Vision") | {
        "resample": 3,  # BICUBIC
        "size": {"height": size, "width": size},
        "do_center_crop": False,
        "crop_size": {"height": size, "width": size},
        "image_grid_pinpoints": config["image_grid_pinpoints"],
    }
    processor = {
        "image_token": "<image>",
        "patch_size": vision["patch_size"],
        "vision_feature_select_strategy": "full",
        "num_additional_image_tokens": 0,
        "downsample_rate": preset["rate"],
    }
    extra = [*FIRST[2:], "<image>"]
    generation = generation_ids(text)
    return vlm_files("Granite4Vision", text, image, processor, ROLES, extra, generation, CHAT)
