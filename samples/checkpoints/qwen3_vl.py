"""Qwen3-VL: features of several depths of an encoder, and Qwen3 with positions in three axes."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared import qwen_vl
from checkpoints.shared.presets import QWEN2_TEXT, TINY_TEXT
from checkpoints.shared.qwen_vl import GAINS, STDS, TINY_VISION, tokenizer

__all__ = ["GAINS", "PRESETS", "STDS", "config", "files", "tokenizer"]

ROPE = dict(rope_type="default", mrope_interleaved=True)
TEXT = QWEN2_TEXT | dict(model_type="qwen3_vl_text", max_position_embeddings=262144,
    rope_theta=5000000.0, rope_scaling=ROPE | dict(mrope_section=[24, 20, 20]))  # fmt: skip
PRESETS = {
    "qwen3-vl-2b": dict(dtype="bfloat16",
        vision=dict(depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16,
            out_hidden_size=2048, deepstack_visual_indexes=[5, 11, 17], patch_size=16,
            num_position_embeddings=2304, hidden_act="gelu_pytorch_tanh"),
        text=TEXT | dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28,
            num_attention_heads=16, num_key_value_heads=8, head_dim=128, vocab_size=151936)),
    "tiny-qwen3-vl": dict(dtype="float32",
        vision=TINY_VISION | dict(deepstack_visual_indexes=[0, 1, 2], patch_size=16,
            num_position_embeddings=49, hidden_act="gelu_pytorch_tanh"),
        text=TEXT | TINY_TEXT | dict(num_hidden_layers=4, max_position_embeddings=4096,
            rope_scaling=ROPE | dict(mrope_section=[3, 3, 2]))),
}  # fmt: skip


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset and its token ids."""
    return qwen_vl.config("Qwen3VL", "qwen3_vl", preset, tokenizer)


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    size = {"size": {"shortest_edge": 256 * 256, "longest_edge": 16777216}}
    if preset["dtype"] == "float32":  # tests have small pictures
        size["size"]["shortest_edge"] = 1024
    return qwen_vl.files("Qwen3VL", config, size, system=False, kind="Qwen2VL")
