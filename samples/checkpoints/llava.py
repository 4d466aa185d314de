"""LLaVA 1.5: CLIP and Llama."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.llava import TINY, clip_config, clip_files, published
from checkpoints.shared.llava import llama as tokenizer
from checkpoints.shared.presets import LLAMA_TEXT, MESSAGES

__all__ = ["PRESETS", "config", "files", "published", "tokenizer"]

PRESETS = {
    "llava-1.5-7b": dict(dtype="bfloat16",
        vision=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
            num_attention_heads=16, image_size=336, patch_size=14, hidden_act="quick_gelu"),
        text=LLAMA_TEXT | dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, head_dim=128, vocab_size=32064,
            rope_theta=10000.0)),
    "tiny-llava": TINY,
}  # fmt: skip
# All pictures of a message first, a line each.
CHAT = MESSAGES + """\
    {{- message.role | upper + ': ' }}
    {%- for part in parts if part.type == 'image' %}{{- '<image>\\n' }}{%- endfor %}
    {%- for part in parts if part.type == 'text' %}{{- part.text + ' ' }}{%- endfor %}
{%- endfor %}
{{- 'ASSISTANT:' if add_generation_prompt else '' }}"""  # fmt: skip


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    return clip_config("Llava", "llava", preset, tokenizer) | {
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    return clip_files(preset, config, CHAT)
