"""LLaVA 1.5: CLIP and Llama."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.llava import image_and_projector, published
from checkpoints.shared.presets import (
    CLIP_MEAN,
    CLIP_STD,
    LLAMA_TEXT,
    MESSAGES,
    TINY_TEXT,
    TINY_VISION,
)
from checkpoints.shared.words import LLAMA_SPECIAL, llama_tokenizer

__all__ = ["PRESETS", "config", "files", "published", "tokenizer"]

PRESETS = {
    "llava-1.5-7b": dict(dtype="bfloat16",
        vision=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
            num_attention_heads=16, image_size=336, patch_size=14, hidden_act="quick_gelu"),
        text=LLAMA_TEXT | dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, head_dim=128, vocab_size=32064,
            rope_theta=10000.0)),
    "tiny-llava": dict(dtype="float32",
        vision=TINY_VISION | dict(num_hidden_layers=3, image_size=56, patch_size=7,
            hidden_act="quick_gelu"),
        text=LLAMA_TEXT | TINY_TEXT),
}  # fmt: skip
# All pictures of a message first, a line each.
CHAT = MESSAGES + """\
    {{- message.role | upper + ': ' }}
    {%- for part in parts if part.type == 'image' %}{{- '<image>\\n' }}{%- endfor %}
    {%- for part in parts if part.type == 'text' %}{{- part.text + ' ' }}{%- endfor %}
{%- endfor %}
{{- 'ASSISTANT:' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Llama's."""
    return llama_tokenizer(preset)


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    vision = {"model_type": "clip_vision_model", **preset["vision"]}
    return vlm_config("Llava", "llava", preset, dict(preset["text"]), vision) | {
        **image_and_projector(tokenizer),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, vision = config["text_config"], preset["vision"]
    size = vision["image_size"]
    image = image_processor("CLIP", "Llava") | {
        "resample": 3,  # BICUBIC
        "do_pad": False,
        "do_center_crop": True,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    processor = {
        "image_token": "<image>",
        "vision_feature_select_strategy": "default",
        "patch_size": vision["patch_size"],
        "num_additional_image_tokens": 1,
    }
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    special |= {"pad_token": "<pad>", "unk_token": "<unk>"}
    generation, extra = generation_ids(text), LLAMA_SPECIAL[3:]
    return vlm_files("Llava", text, image, processor, special, extra, generation, CHAT)
