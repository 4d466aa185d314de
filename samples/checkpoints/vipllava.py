"""ViP-LLaVA: CLIP, features of several of its layers, and Llama; no family here has its type."""

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.llava import TINY, clip_config, clip_files, published
from checkpoints.shared.llava import llama as tokenizer
from checkpoints.shared.presets import MESSAGES

__all__ = ["PRESETS", "config", "files", "published", "tokenizer"]

PRESETS = {"tiny-vipllava": TINY | {"layers": [-2, -1, 1]}}
CHAT = MESSAGES + """\
    {{- '###' + ('Assistant' if message.role == 'assistant' else 'Human') + ': ' }}
    {%- for part in parts %}
        {{- '<image>\\n' if part.type == 'image' else part.text }}
    {%- endfor %}
{%- endfor %}
{{- '###Assistant:' if add_generation_prompt else '' }}"""  # fmt: skip


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    return clip_config("VipLlava", "vipllava", preset, tokenizer) | {
        "vision_feature_layer": preset["layers"],
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    return clip_files(preset, config, CHAT)
