"""ViP-LLaVA: CLIP, features of several of its layers, and Llama; no family here has its type."""

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
    "tiny-vipllava": dict(dtype="float32", layers=[-2, -1, 1],
        vision=TINY_VISION | dict(num_hidden_layers=3, image_size=56, patch_size=7,
            hidden_act="quick_gelu"),
        text=LLAMA_TEXT | TINY_TEXT),
}  # fmt: skip
CHAT = MESSAGES + """\
    {{- '###' + ('Assistant' if message.role == 'assistant' else 'Human') + ': ' }}
    {%- for part in parts %}
        {{- '<image>\\n' if part.type == 'image' else part.text }}
    {%- endfor %}
{%- endfor %}
{{- '###Assistant:' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Llama's."""
    return llama_tokenizer(preset)


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    vision = {"model_type": "clip_vision_model", **preset["vision"]}
    return vlm_config("VipLlava", "vipllava", preset, dict(preset["text"]), vision) | {
        **image_and_projector(tokenizer),
        "vision_feature_layer": preset["layers"],
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, vision = config["text_config"], preset["vision"]
    size = vision["image_size"]
    image = image_processor("CLIP", "Llava") | {
        "resample": 3,  # BICUBIC
        "do_center_crop": True,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    del image["do_pad"]
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
