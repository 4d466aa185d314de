"""Qwen3.5: Qwen3-VL's encoder with one level, layers of gated delta rule, gated attention."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared import qwen3_5, qwen_vl
from checkpoints.shared.qwen3_5 import CONSTANTS, TEXT, TINY, norm_offset, tokenizer

__all__ = ["CONSTANTS", "GAINS", "PRESETS", "STDS", "config", "files", "norm_offset", "tokenizer"]

GAINS, STDS = qwen_vl.GAINS | qwen3_5.GAINS, qwen_vl.STDS | qwen3_5.STDS
VISION = dict(patch_size=16, num_position_embeddings=2304, hidden_act="gelu_pytorch_tanh")
PRESETS = {
    # A guess, not confirmed: sizes that make the one in the published name.
    "qwen3.5-0.8b": dict(dtype="bfloat16",
        vision=VISION | dict(depth=12, hidden_size=768, intermediate_size=3072, num_heads=12,
            out_hidden_size=1024),
        text=TEXT | dict(hidden_size=1024, intermediate_size=3584, num_hidden_layers=24,
            num_attention_heads=8, num_key_value_heads=2, linear_num_key_heads=16,
            linear_num_value_heads=16)),
    "qwen3.5-4b": dict(dtype="bfloat16",
        vision=VISION | dict(depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16,
            out_hidden_size=2560),
        text=TEXT | dict(hidden_size=2560, intermediate_size=9216, num_hidden_layers=32,
            num_attention_heads=16, num_key_value_heads=4, linear_num_key_heads=16,
            linear_num_value_heads=32)),
    "tiny-qwen3-5": dict(dtype="float32",
        vision=VISION | qwen_vl.TINY_VISION | dict(depth=2, num_position_embeddings=49),
        text=TEXT | TINY),
}  # fmt: skip


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset and its token ids."""
    return qwen_vl.config("Qwen3_5", "qwen3_5", preset, tokenizer)


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    size = {"size": {"shortest_edge": 256 * 256, "longest_edge": 16777216}}
    if preset["dtype"] == "float32":  # tests have small pictures
        size["size"]["shortest_edge"] = 1024
    made = qwen_vl.files("Qwen3VL", config, size, system=False, kind="Qwen2VL")
    picture = "'<|vision_start|><|' + part.type + '_pad|><|vision_end|>'"
    return made | {"chat_template.jinja": qwen3_5.chat(picture)}
