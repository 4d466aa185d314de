"""SmolVLM: SigLIP and SmolLM2."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.idefics import TINY, idefics_config, idefics_files, tokenizer
from checkpoints.shared.presets import SMOLLM_TEXT

__all__ = ["PRESETS", "config", "files", "tokenizer"]

VISION = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=12, image_size=512, patch_size=16,
    hidden_act="gelu_pytorch_tanh")  # fmt: skip
PRESETS = {
    "smolvlm-256m": dict(dtype="bfloat16", scale_factor=4, vision=VISION,
        text=SMOLLM_TEXT | dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3)),
    "smolvlm-500m": dict(dtype="bfloat16", scale_factor=4, vision=VISION,
        text=SMOLLM_TEXT | dict(hidden_size=960, intermediate_size=2560, num_hidden_layers=32,
            num_attention_heads=15, num_key_value_heads=5)),
    "tiny-smolvlm": TINY,
}  # fmt: skip


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json."""
    return idefics_config("SmolVLM", "smolvlm", preset, tokenizer)


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder."""
    return idefics_files("SmolVLM", preset, config)
