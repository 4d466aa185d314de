"""MiniCPM-V 4.6: an encoder that folds 2x2 patches inside and behind it, over Qwen3.5."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared import minicpmv
from checkpoints.shared.minicpmv import SMALL, tokenizer
from checkpoints.shared.qwen3_5 import CONSTANTS, GAINS, STDS, TEXT, norm_offset

__all__ = ["CONSTANTS", "GAINS", "PRESETS", "STDS", "config", "files", "norm_offset", "tokenizer"]

PRESETS = {
    "minicpm-v-4.6": dict(dtype="bfloat16", insert_layer_id=6, scale_resolution=448,
        vision=dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
            num_attention_heads=16, image_size=980, patch_size=14,
            hidden_act="gelu_pytorch_tanh"),
        text=TEXT | dict(hidden_size=1024, intermediate_size=3584, num_hidden_layers=24,
            num_attention_heads=8, num_key_value_heads=2, linear_num_key_heads=16,
            linear_num_value_heads=16)),
    "tiny-minicpm-v-4-6": SMALL,
}  # fmt: skip


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset and its token ids."""
    return minicpmv.config("MiniCPMV4_6", preset, tokenizer)


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    return minicpmv.files("MiniCPMV4_6", preset, config)
