"""LLaVA-OneVision: SigLIP and Qwen2."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.llava import image_and_projector, pinpoints, published
from checkpoints.shared.presets import MESSAGES, QWEN2_TEXT, TINY_TEXT, TINY_VISION
from checkpoints.shared.words import QWEN2_FIRST, qwen2_tokenizer

__all__ = ["PRESETS", "config", "files", "published", "tokenizer"]

PRESETS = {
    "llava-onevision-0.5b": dict(dtype="bfloat16",
        vision=dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
            num_attention_heads=16, image_size=384, patch_size=14,
            hidden_act="gelu_pytorch_tanh"),
        text=QWEN2_TEXT | dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
            num_attention_heads=14, num_key_value_heads=2)),
    "tiny-llava-onevision": dict(dtype="float32",
        vision=TINY_VISION | dict(image_size=56, patch_size=4), text=QWEN2_TEXT | TINY_TEXT),
}  # fmt: skip
SPECIAL = [*QWEN2_FIRST, "<image>", "<video>"]
GRIDS = [(rows, columns) for rows in range(1, 7) for columns in range(1, 7)]
CHAT = MESSAGES + """\
    {{- '<|im_start|>' + message.role + ' ' }}
    {%- for kind in ['image', 'video'] %}
        {%- for part in parts if part.type == kind %}{{- '<' + kind + '>' }}{%- endfor %}
    {%- endfor %}
    {%- for part in parts if part.type == 'text' %}{{- '\\n' + part.text }}{%- endfor %}
    {{- '<|im_end|>' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Qwen2's, with words for images and clips."""
    return qwen2_tokenizer(preset, SPECIAL)


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    start, _, end = (tokenizer.token_to_id(token) for token in QWEN2_FIRST)
    text = dict(preset["text"], bos_token_id=start, eos_token_id=end, pad_token_id=start)
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **preset["vision"]}
    return vlm_config("LlavaOnevision", "llava_onevision", preset, text, vision) | {
        **image_and_projector(tokenizer),
        "video_token_index": tokenizer.token_to_id("<video>"),
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_grid_pinpoints": pinpoints(GRIDS, vision["image_size"]),
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    name, text, vision = "LlavaOnevision", config["text_config"], preset["vision"]
    size = vision["image_size"]
    image = image_processor(name, name) | {
        "resample": 3,  # BICUBIC
        "image_grid_pinpoints": config["image_grid_pinpoints"],
        "size": {"height": size, "width": size},
    }
    processor = {
        "image_token": "<image>",
        "video_token": "<video>",
        "vision_feature_select_strategy": "full",
        "num_image_tokens": (size // vision["patch_size"]) ** 2,
        "vision_aspect_ratio": "anyres_max_9",
    }
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    generation = generation_ids(text)
    return vlm_files(name, text, image, processor, special, SPECIAL[1:], generation, CHAT)
