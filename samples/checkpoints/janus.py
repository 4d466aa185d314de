"""Janus: an encoder of SigLIP's kin, and Llama, beside what draws; no family here has its type."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared import deepseek
from checkpoints.shared.deepseek import tokenizer
from checkpoints.shared.files import vlm_config
from checkpoints.shared.presets import LLAMA_TEXT, TINY_TEXT

__all__ = ["GAINS", "PRESETS", "config", "files", "tokenizer"]

PRESETS = {
    "tiny-janus": dict(dtype="float32",
        vision=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56,
            patch_size=7, mlp_ratio=2.0, projection_dim=64, num_image_tokens=64),
        text=LLAMA_TEXT | TINY_TEXT | dict(bos_token_id=0, eos_token_id=1, pad_token_id=1023)),
}  # fmt: skip
# What draws pictures, which no answer in words needs.
DRAWS = dict(base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=32,
    num_embeddings=64, projection_dim=64, image_token_embed_dim=64)  # fmt: skip
GAINS = {"aligner": 1.5, "projection_layer": 1.5, "vqmodel": 1.0, "generation_embeddings": 1.0,
         "generation_aligner": 1.0, "generation_head": 1.0}  # fmt: skip


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    vision = {"model_type": "janus_vision_model", **preset["vision"]}
    return vlm_config("Janus", "janus", preset, dict(preset["text"]), vision) | {
        "image_token_id": tokenizer.token_to_id(deepseek.MARKS["image_token"]),
        "vq_config": {"model_type": "janus_vqgan", **DRAWS},
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    return deepseek.files("Janus", preset, config, {})
