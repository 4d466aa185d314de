"""Idefics3: the architecture of SmolVLM under its older name; SmolDocling, Granite Docling 258M."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared import granite, idefics
from checkpoints.shared.files import generation_ids
from checkpoints.shared.idefics import TINY, idefics_config, idefics_files
from checkpoints.shared.presets import BASE, SMOLLM_TEXT

VISION = BASE | dict(image_size=512, patch_size=16, hidden_act="gelu_pytorch_tanh")
TEXT = SMOLLM_TEXT | dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3)  # fmt: skip
# Of the Docling models no config was at hand: theirs is that of SmolVLM 256M, which the first one
# was trained from. It has 256.5 million parameters; the second one, with Granite's words, 257.5.
PRESETS = {
    "smoldocling-256m": dict(dtype="bfloat16", scale_factor=4, vision=VISION,
        text=TEXT | dict(tie_word_embeddings=False)),
    "granite-docling-258m": dict(dtype="bfloat16", scale_factor=4, vision=VISION, granite=True,
        text=TEXT | dict(vocab_size=100352)),
    "tiny-idefics3": TINY,
}  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """That of SmolVLM, or Granite's."""
    if "granite" in preset:
        return granite.granite_tokenizer(preset, granite.page_tokens(6))
    return idefics.tokenizer(preset)


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json."""
    made = idefics_config("Idefics3", "idefics3", preset, tokenizer)
    if "granite" in preset:
        made["text_config"] |= granite.granite_ids(tokenizer)
        made["pad_token_id"] = made["text_config"]["pad_token_id"]
    return made


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder."""
    made = idefics_files("Idefics3", preset, config)
    if "granite" in preset:
        tokens = granite.ROLES | {"additional_special_tokens": granite.FIRST[2:]}
        made["tokenizer_config.json"] |= tokens
        made["special_tokens_map.json"] |= tokens
        made["generation_config.json"] = generation_ids(config["text_config"])
        made["chat_template.jinja"] = granite.CHAT
    return made
