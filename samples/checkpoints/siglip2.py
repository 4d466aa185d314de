"""SigLIP 2 that keeps a picture's shape (NaFlex)."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.embedders import embedder_config, embedder_files
from checkpoints.shared.presets import SIGLIP_IDS, TINY_VISION, TINY_WORDS
from checkpoints.shared.siglip import NO_MASK, ROLES, siglip_tokenizer

PRESETS = {
    "tiny-siglip2": dict(dtype="float32", max_num_patches=64,
        vision=TINY_VISION | dict(patch_size=8, num_patches=16), text=TINY_WORDS | SIGLIP_IDS),
}  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """SigLIP 2's."""
    return siglip_tokenizer(preset)


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json."""
    return embedder_config("Siglip2", "siglip2", preset, preset["text"])


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder."""
    image = {"max_num_patches": preset["max_num_patches"]}
    image |= {"patch_size": preset["vision"]["patch_size"]}
    own = {"tokenizer_class": "Siglip2Tokenizer", **NO_MASK}
    return embedder_files("Siglip2", preset, image, own, ROLES)
