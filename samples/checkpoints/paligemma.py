"""PaliGemma and PaliGemma 2: SigLIP, and Gemma or Gemma 2."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.gemma import (
    GAINS,
    GEMMA_TEXT,
    ROLES,
    SO400M,
    STDS,
    TINY_GEMMA,
    gemma_tokenizer,
    norm_offset,
    published,
)
from checkpoints.shared.presets import TINY_VISION

__all__ = ["GAINS", "PRESETS", "STDS", "config", "files", "norm_offset", "published", "tokenizer"]

GEMMA1 = dict(model_type="gemma", max_position_embeddings=8192, rope_theta=10000.0)
GEMMA2 = dict(model_type="gemma2", max_position_embeddings=8192, rope_theta=10000.0,
    query_pre_attn_scalar=256, sliding_window=4096, attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0)  # fmt: skip
TINY_SIGLIP = TINY_VISION | dict(image_size=56, patch_size=7)
# Places and outlines of things, which the processor adds where a tokenizer lacks them.
MARKS = [f"<loc{i:0>4}>" for i in range(1024)] + [f"<seg{i:0>3}>" for i in range(128)]
PRESETS = {
    "paligemma-3b-224": dict(dtype="bfloat16", words=256000,
        vision=SO400M | dict(image_size=224),
        text=GEMMA_TEXT | GEMMA1 | dict(hidden_size=2048, intermediate_size=16384,
            num_hidden_layers=18, num_attention_heads=8, num_key_value_heads=1,
            vocab_size=257216)),
    "paligemma2-3b-224": dict(dtype="bfloat16", words=256000,
        vision=SO400M | dict(image_size=224),
        text=GEMMA_TEXT | GEMMA2 | dict(hidden_size=2304, intermediate_size=9216,
            num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4,
            vocab_size=257216)),
    # A larger vocabulary than other tiny ones: the processor has 1,152 tokens of its own.
    "tiny-paligemma": dict(dtype="float32", words=1100, vision=TINY_SIGLIP,
        text=TINY_GEMMA | GEMMA1 | dict(num_key_value_heads=1, vocab_size=2304)),
    "tiny-paligemma2": dict(dtype="float32", words=1100, vision=TINY_SIGLIP,
        text=TINY_GEMMA | GEMMA2 | dict(query_pre_attn_scalar=20, sliding_window=192,
            attn_logit_softcapping=4.0, final_logit_softcapping=3.0, vocab_size=2304)),
}  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Gemma's, and after its words those of places and <image>."""
    made = gemma_tokenizer(preset, preset["words"], [])
    made.add_tokens(MARKS)
    made.add_special_tokens(["<image>"])
    return made


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    text, width = dict(preset["text"]), preset["text"]["hidden_size"]
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **preset["vision"]}
    vision |= {"projection_dim": width}
    return vlm_config("PaliGemma", "paligemma", preset, text, vision) | {
        "image_token_index": tokenizer.token_to_id("<image>"),
        "projection_dim": width,
        "hidden_size": width,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published; there is no chat template."""
    text, vision = config["text_config"], preset["vision"]
    size = vision["image_size"]
    image = image_processor("Siglip", "PaliGemma") | {
        "resample": 3,  # BICUBIC
        "size": {"height": size, "width": size},
        "image_seq_length": (size // vision["patch_size"]) ** 2,
    }
    del image["do_pad"]
    extra, generation = ["<image>"], generation_ids(text)
    made = vlm_files("PaliGemma", text, image, {}, ROLES, extra, generation, "")
    del made["chat_template.jinja"]
    return made
