"""Gemma 3: SigLIP, averages of patches, and Gemma 3's text model."""

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
from checkpoints.shared.presets import MESSAGES, TINY_VISION

__all__ = ["GAINS", "PRESETS", "STDS", "config", "files", "norm_offset", "published", "tokenizer"]

ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
GEMMA3 = dict(model_type="gemma3_text", max_position_embeddings=131072, query_pre_attn_scalar=256,
    rope_parameters=ROPES)  # fmt: skip
PRESETS = {
    "gemma3-4b": dict(dtype="bfloat16", words=262144, tokens=256,
        vision=SO400M | dict(image_size=896),
        text=GEMMA_TEXT | GEMMA3 | dict(hidden_size=2560, intermediate_size=10240,
            num_hidden_layers=34, num_attention_heads=8, num_key_value_heads=4,
            sliding_window=1024, vocab_size=262208)),
    "tiny-gemma3": dict(dtype="float32", words=1000, tokens=16,
        vision=TINY_VISION | dict(image_size=56, patch_size=7),
        text=TINY_GEMMA | GEMMA3 | dict(num_hidden_layers=3, query_pre_attn_scalar=20,
            sliding_window=12, sliding_window_pattern=2, vocab_size=1024)),
}  # fmt: skip
SPECIAL = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
IMAGE = "<image_soft_token>"  # behind all words
# A system text goes in front of the first question.
CHAT = "{{ bos_token }}{% set ns = namespace(system='') %}" + MESSAGES + """\
    {%- if message.role == 'system' %}{%- set ns.system = parts[0].text + '\\n\\n' %}
    {%- else %}
        {{- '<start_of_turn>' }}
        {{- ('model' if message.role == 'assistant' else message.role) + '\\n' + ns.system }}
        {%- set ns.system = '' %}
        {%- for part in parts %}
            {{- '<start_of_image>' if part.type == 'image' else part.text | trim }}
        {%- endfor %}
        {{- '<end_of_turn>\\n' }}
    {%- endif %}
{%- endfor %}
{{- '<start_of_turn>model\\n' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Gemma's, and behind its words the token of a visual one."""
    made = gemma_tokenizer(preset, preset["words"], SPECIAL)
    made.add_special_tokens([IMAGE])
    return made


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **preset["vision"]}
    return vlm_config("Gemma3", "gemma3", preset, dict(preset["text"]), vision) | {
        "mm_tokens_per_image": preset["tokens"],
        "image_token_index": tokenizer.token_to_id(IMAGE),
        "boi_token_index": tokenizer.token_to_id("<start_of_image>"),
        "eoi_token_index": tokenizer.token_to_id("<end_of_image>"),
        "eos_token_id": [1, tokenizer.token_to_id("<end_of_turn>")],
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, size = config["text_config"], preset["vision"]["image_size"]
    image = image_processor("Gemma3", "Gemma3") | {
        "resample": 2,  # BILINEAR
        "size": {"height": size, "width": size},
        "image_seq_length": preset["tokens"],
    }
    del image["do_pad"]
    generation = generation_ids(text) | {"eos_token_id": config["eos_token_id"]}
    marks = {"boi_token": SPECIAL[2], "eoi_token": SPECIAL[3], "image_token": IMAGE}
    processor = {"image_seq_length": preset["tokens"]}
    made = vlm_files("Gemma3", text, image, processor, ROLES, [], generation, CHAT)
    made["tokenizer_config.json"] |= {"extra_special_tokens": marks, **marks}
    del made["tokenizer_config.json"]["additional_special_tokens"]
    return made
