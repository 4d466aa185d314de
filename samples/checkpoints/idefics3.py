"""Idefics3: the architecture of SmolVLM under its older name."""

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.idefics import TINY, idefics_config, idefics_files, tokenizer

__all__ = ["PRESETS", "config", "files", "tokenizer"]

PRESETS = {"tiny-idefics3": TINY}


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json."""
    return idefics_config("Idefics3", "idefics3", preset, tokenizer)


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder."""
    return idefics_files("Idefics3", preset, config)
