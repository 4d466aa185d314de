"""PaddleOCR-VL: SigLIP with rotary positions, and Ernie 4.5 with positions in three axes."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer, pre_tokenizers

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.presets import MESSAGES, TINY_TEXT, TINY_VISION, tiny
from checkpoints.shared.words import byte_level

IMAGE, START, END = "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>"
FIRST = ["<unk>", "<s>", "</s>"]
LAST = ["<|begin_of_sentence|>", IMAGE, "<|VIDEO_PLACEHOLDER|>", START, END]
VISION = dict(spatial_merge_size=2, hidden_act="gelu_pytorch_tanh", patch_size=14)
TEXT = dict(model_type="paddleocr_vl_text", hidden_act="silu", rms_norm_eps=1e-5,
    max_position_embeddings=131072, tie_word_embeddings=False, use_bias=False, bos_token_id=1,
    eos_token_id=2, pad_token_id=0)  # fmt: skip
ROPE = dict(rope_type="default", rope_theta=500000.0)
PRESETS = {
    # The sizes are the defaults of transformers, which name this checkpoint.
    "paddleocr-vl-0.9b": dict(dtype="bfloat16",
        vision=VISION | dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
            num_attention_heads=16, image_size=384),
        text=TEXT | dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=18,
            num_attention_heads=16, num_key_value_heads=2, head_dim=128, vocab_size=103424,
            rope_parameters=ROPE | dict(mrope_section=[16, 24, 24]))),
    "tiny-paddleocr-vl": dict(dtype="float32",
        vision=VISION | TINY_VISION | dict(image_size=70),
        text=TEXT | TINY_TEXT | dict(num_hidden_layers=3, max_position_embeddings=4096,
            rope_parameters=ROPE | dict(mrope_section=[2, 3, 3]))),
}  # fmt: skip
CHAT = "{{- '<|begin_of_sentence|>' }}" + MESSAGES + """\
    {%- if message.role == 'user' %}{{- 'User: ' }}
    {%- elif message.role == 'assistant' %}{{- 'Assistant:\\n' }}{%- endif %}
    {%- for part in parts if part.type == 'image' %}
        {{- '<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}
    {%- endfor %}
    {%- for part in parts if part.type == 'text' %}{{- part.text }}{%- endfor %}
    {{- '</s>' if message.role == 'assistant' else '\\n' }}
{%- endfor %}
{{- 'Assistant:\\n' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Byte-level BPE with words for pictures behind all others."""
    words = preset["text"]["vocab_size"] - len(LAST)
    return byte_level(words, FIRST, LAST, pre_tokenizers.Digits(True), tiny(preset))


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset and its token ids."""
    vision = preset["vision"] | {"model_type": "paddleocr_vl_vision"}
    made = vlm_config("PaddleOCRVL", "paddleocr_vl", preset, dict(preset["text"]), vision)
    return made | {
        "image_token_id": tokenizer.token_to_id(IMAGE),
        "video_token_id": tokenizer.token_to_id("<|VIDEO_PLACEHOLDER|>"),
        "vision_start_token_id": tokenizer.token_to_id(START),
        "vision_end_token_id": tokenizer.token_to_id(END),
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text = config["text_config"]
    image = image_processor("PaddleOCRVL", "PaddleOCRVL") | {
        "resample": 3,  # BICUBIC
        "min_pixels": 784 if tiny(preset) else 147384,  # tests have small pictures
        "max_pixels": 2822400,
        "patch_size": preset["vision"]["patch_size"],
        "temporal_patch_size": 1,
        "merge_size": 2,
    }
    del image["do_pad"]
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special["pad_token"] = "<unk>"
    generation = generation_ids(text)
    made = vlm_files("PaddleOCRVL", text, image, {}, special, LAST, generation, CHAT)
    # By this name its processor asks the tokenizer for it.
    made["tokenizer_config.json"]["extra_special_tokens"] = {"image_token": IMAGE}
    return made


def published(name: str) -> str:
    """The published files keep an older layout of the modules."""
    for new, old in (("visual", "visual"), ("projector", "mlp_AR"), ("language_model", "model")):
        name = name.replace(f"model.{new}.", f"{old}.")
    return name
