"""LLaVA-NeXT: CLIP and Llama."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import image_processor
from checkpoints.shared.llava import TINY, clip_config, clip_files, pinpoints, published
from checkpoints.shared.llava import llama as tokenizer
from checkpoints.shared.presets import MESSAGES

__all__ = ["PRESETS", "config", "files", "published", "tokenizer"]

PRESETS = {"tiny-llava-next": TINY | dict(vision=TINY["vision"] | dict(patch_size=4))}
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
CHAT = MESSAGES + """\
    {{- message.role | upper + ': ' }}
    {%- for part in parts %}
        {{- '<image>\\n' if part.type == 'image' else part.text + ' ' }}
    {%- endfor %}
{%- endfor %}
{{- 'ASSISTANT:' if add_generation_prompt else '' }}"""  # fmt: skip


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    return clip_config("LlavaNext", "llava_next", preset, tokenizer) | {
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_grid_pinpoints": pinpoints(GRIDS, preset["vision"]["image_size"]),
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    image = image_processor("LlavaNext", "LlavaNext")
    image |= {"image_grid_pinpoints": config["image_grid_pinpoints"]}
    return clip_files(preset, config, CHAT, "LlavaNext", image)
