"""Granite Docling: SigLIP with features of several depths, and Granite."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.granite import (
    CHAT,
    FIRST,
    ROLES,
    granite_ids,
    granite_tokenizer,
    page_tokens,
)
from checkpoints.shared.presets import BASE, TINY_TEXT, TINY_VISION, tiny

TEXT = dict(model_type="granite_docling_text", hidden_act="silu", rms_norm_eps=1e-5,
    max_position_embeddings=32768, tie_word_embeddings=True, rope_theta=10000.0,
    embedding_multiplier=12.0, logits_scaling=4.0, residual_multiplier=0.263,
    attention_multiplier=0.015625)  # fmt: skip
VISION = dict(image_size=512, patch_size=16, scale_factor=4, use_fine_route=True,
    deepstack_visual_indexes=[3, 7, 10], hidden_act="gelu_pytorch_tanh")  # fmt: skip
PRESETS = {
    # The sizes are the defaults of transformers, which name this checkpoint.
    "granite-docling-500m": dict(dtype="bfloat16",
        vision=VISION | BASE | dict(out_hidden_size=1024),
        text=TEXT | dict(hidden_size=1024, intermediate_size=2048, num_hidden_layers=28,
            num_attention_heads=16, num_key_value_heads=4, vocab_size=133800)),
    "tiny-granite-docling": dict(dtype="float32",
        vision=VISION | TINY_VISION | dict(num_hidden_layers=4, image_size=64, patch_size=4,
            scale_factor=4, out_hidden_size=64, deepstack_visual_indexes=[0, 1, 2]),
        text=TEXT | TINY_TEXT | dict(num_hidden_layers=4, max_position_embeddings=4096,
            embedding_multiplier=3.0, attention_multiplier=0.3)),
}  # fmt: skip
PRESETS["tiny-granite-docling-fine"] = PRESETS["tiny-granite-docling"] | {"fine_route": True}
GAINS = {"projection": 1.0, "mlp_fc2": 1.0}
STDS = {"ln_in": 1.0, "ln_mid": 1.0, "ln_out": 1.0}


def tokenizer(preset: dict) -> Tokenizer:
    """Granite's, with words for pages of up to 16 tiles a side."""
    return granite_tokenizer(preset, page_tokens(4 if tiny(preset) else 16))


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset and its token ids."""
    text = preset["text"] | granite_ids(tokenizer)
    vision = preset["vision"] | {"model_type": "granite_docling_vision"}
    ids = {"image_token_id": tokenizer.token_to_id("<image>")}
    return vlm_config("GraniteDocling", "granite_docling", preset, text, vision) | ids


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, vision = config["text_config"], preset["vision"]
    size, side = vision["image_size"], vision["image_size"] // vision["patch_size"]
    image = image_processor("GraniteDocling", "GraniteDocling") | {
        "resample": 3,  # BICUBIC
        "size": {"height": size, "width": size},
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": 32,
    }
    image |= {"fine_route": True} if preset.get("fine_route") else {}
    del image["do_pad"]
    processor = {"image_seq_len": (side // vision["scale_factor"]) ** 2}
    extra = [*FIRST[2:], *page_tokens(0)]
    generation = generation_ids(text)
    return vlm_files("GraniteDocling", text, image, processor, ROLES, extra, generation, CHAT)
