"""Mistral 3: Pixtral's encoder, and Ministral 3 with longer positions by yarn."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer, pre_tokenizers, processors

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.presets import CLIP_MEAN, CLIP_STD, MESSAGES, TINY_TEXT, tiny
from checkpoints.shared.words import byte_level

# In the order of their published ids; the others of the first 1,000 have no name.
FIRST = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]"]  # fmt: skip
YARN = dict(rope_type="yarn", rope_theta=1000000.0, beta_fast=32.0, beta_slow=1.0, mscale=1.0,
    mscale_all_dim=1.0, llama_4_scaling_beta=0.1)  # fmt: skip
TEXT = dict(model_type="ministral3", hidden_act="silu", rms_norm_eps=1e-5, sliding_window=None,
    tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=11)  # fmt: skip
PRESETS = {
    "ministral-3-3b": dict(dtype="bfloat16",
        vision=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
            num_attention_heads=16, image_size=1540, patch_size=14, hidden_act="silu"),
        text=TEXT | dict(hidden_size=3072, intermediate_size=9216, num_hidden_layers=26,
            num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=131072,
            max_position_embeddings=262144,
            rope_parameters=YARN | dict(factor=16.0, original_max_position_embeddings=16384))),
    "tiny-mistral3": dict(dtype="float32",
        vision=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, image_size=1540, patch_size=14, hidden_act="silu"),
        text=TEXT | TINY_TEXT | dict(max_position_embeddings=4096,
            rope_parameters=YARN | dict(factor=4.0, original_max_position_embeddings=1024))),
}  # fmt: skip
GAINS = {"patch_conv": 3.0, "merging_layer": 1.0}
STDS = {"ln_pre": 1.0}
CHAT = (
    "{{- bos_token }}"
    + MESSAGES
    + """\
    {%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' }}
    {%- elif message.role == 'user' %}{{- '[INST]' }}{%- endif %}
    {%- for part in parts %}{{- part.text if part.type == 'text' else '[IMG]' }}{%- endfor %}
    {%- if message.role == 'system' %}{{- '[/SYSTEM_PROMPT]' }}
    {%- elif message.role == 'user' %}{{- '[/INST]' }}
    {%- else %}{{- eos_token }}{%- endif %}
{%- endfor %}"""
)


def tokenizer(preset: dict) -> Tokenizer:
    """Byte-level BPE behind Mistral's special tokens, which puts <s> in front of a text."""
    few = tiny(preset)
    first = [*FIRST, *(f"<SPECIAL_{i}>" for i in range(len(FIRST), 24 if few else 1000))]
    words = preset["text"]["vocab_size"]
    made = byte_level(words, first, [], pre_tokenizers.Digits(individual_digits=True), few)
    start = [("<s>", first.index("<s>"))]
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=start)
    return made


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    vision = {"model_type": "pixtral", **preset["vision"]}
    return vlm_config("Mistral3", "mistral3", preset, dict(preset["text"]), vision) | {
        "image_token_index": tokenizer.token_to_id("[IMG]"),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": False,
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, patch = config["text_config"], preset["vision"]["patch_size"]
    image = image_processor("Pixtral", "Pixtral") | {
        "resample": 3,  # BICUBIC
        "size": {"longest_edge": preset["vision"]["image_size"]},
        "patch_size": patch,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    processor = {
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
        "patch_size": patch,
        "spatial_merge_size": 2,
    }
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    special |= {"pad_token": "<pad>", "unk_token": "<unk>"}
    generation = generation_ids(text)
    return vlm_files("Pixtral", text, image, processor, special, FIRST[3:], generation, CHAT)


def published(name: str) -> str:
    """The published files keep an older layout of the modules."""
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    return name.removeprefix("model.").replace("language_model.", "language_model.model.")
