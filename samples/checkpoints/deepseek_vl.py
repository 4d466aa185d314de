"""DeepSeek-VL: SigLIP, two layers, and Llama; docs/add-a-family.md has a family of its type."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared import deepseek
from checkpoints.shared.deepseek import tokenizer
from checkpoints.shared.files import vlm_config
from checkpoints.shared.presets import CLIP_MEAN, CLIP_STD, LLAMA_TEXT, TINY_TEXT, TINY_VISION

__all__ = ["GAINS", "PRESETS", "config", "files", "tokenizer"]

PRESETS = {
    "tiny-deepseek-vl": dict(dtype="float32",
        vision=TINY_VISION | dict(image_size=56, patch_size=7, vision_use_head=False),
        text=LLAMA_TEXT | TINY_TEXT | dict(bos_token_id=0, eos_token_id=1, pad_token_id=1023)),
}  # fmt: skip
GAINS = {"linear1": 1.5, "linear2": 1.0}


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    vision = {"model_type": "siglip_vision_model", **preset["vision"]}
    return vlm_config("DeepseekVL", "deepseek_vl", preset, dict(preset["text"]), vision) | {
        "image_token_id": tokenizer.token_to_id(deepseek.MARKS["image_token"])
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    numbers = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    return deepseek.files("DeepseekVL", preset, config, numbers)
