"""MiniCPM-V 4.7: MiniCPM-V 4.6 with a picture's positions on a canvas."""

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared import minicpmv
from checkpoints.shared.minicpmv import MARKS, SMALL, tokenizer
from checkpoints.shared.qwen3_5 import CONSTANTS, GAINS, STDS, norm_offset

__all__ = ["CONSTANTS", "GAINS", "PRESETS", "STDS", "config", "files", "norm_offset", "tokenizer"]

PRESETS = {
    "tiny-minicpm-v-4-7": SMALL,
    # The fold inside the encoder is left out, and a token is of 2x2 patches.
    "tiny-minicpm-v-4-7-4x": SMALL | {"downsample_mode": "4x", "scale_resolution": 112},
}
PLACED = ("image_start", "image_end", "slice_start", "slice_end")


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids, and those of marks that have places."""
    placed = {f"{name}_id": tokenizer.token_to_id(MARKS[f"{name}_token"]) for name in PLACED}
    line = {"newline_id": tokenizer.token_to_id("Ċ")}  # a line break as a byte-level word
    return minicpmv.config("MiniCPMV4_7", preset, tokenizer) | placed | line


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    return minicpmv.files("MiniCPMV4_7", preset, config)
