"""Qwen2.5-VL: an encoder with windows of its own, and Qwen2 with positions in three axes."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared import qwen_vl
from checkpoints.shared.presets import CLIP_MEAN, CLIP_STD, QWEN2_TEXT, TINY_TEXT
from checkpoints.shared.qwen_vl import GAINS, STDS, TINY_VISION, tokenizer

__all__ = ["GAINS", "PRESETS", "STDS", "config", "files", "published", "tokenizer"]

TEXT = QWEN2_TEXT | dict(model_type="qwen2_5_vl_text", max_position_embeddings=128000,
    rope_scaling=dict(type="mrope", mrope_section=[16, 24, 24]))  # fmt: skip
PRESETS = {
    "qwen2.5-vl-3b": dict(dtype="bfloat16",
        vision=dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16,
            out_hidden_size=2048, fullatt_block_indexes=[7, 15, 23, 31], window_size=112,
            patch_size=14, tokens_per_second=2),
        text=TEXT | dict(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36,
            num_attention_heads=16, num_key_value_heads=2, vocab_size=151936)),
    "tiny-qwen2-5-vl": dict(dtype="float32",
        vision=TINY_VISION | dict(fullatt_block_indexes=[1, 3], window_size=56, patch_size=14,
            tokens_per_second=2),
        text=TEXT | TINY_TEXT | dict(num_hidden_layers=3, max_position_embeddings=4096,
            rope_scaling=dict(type="mrope", mrope_section=[2, 3, 3]))),
}  # fmt: skip


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset and its token ids."""
    return qwen_vl.config("Qwen2_5_VL", "qwen2_5_vl", preset, tokenizer)


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    pixels = {"min_pixels": 3136, "max_pixels": 12845056}
    image = pixels | {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    return qwen_vl.files("Qwen2_5_VL", config, image, system=True)


def published(name: str) -> str:
    """The published files keep an older layout of the modules."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
