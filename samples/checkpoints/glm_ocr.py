"""GLM-OCR: an encoder of its own, and GLM with positions in three axes."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer, pre_tokenizers

from checkpoints.shared.files import image_processor, vlm_config, vlm_files
from checkpoints.shared.presets import CLIP_MEAN, CLIP_STD, MESSAGES, TINY_TEXT, tiny
from checkpoints.shared.words import byte_level

SPECIAL = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|image|>", "<|video|>"]  # fmt: skip
NAMED = {"image_token": "<|image|>", "video_token": "<|video|>"}
VISION = dict(hidden_act="silu", attention_bias=True, patch_size=14, spatial_merge_size=2,
    temporal_patch_size=2)  # fmt: skip
TEXT = dict(model_type="glm_ocr_text", hidden_act="silu", rms_norm_eps=1e-5,
    max_position_embeddings=131072, tie_word_embeddings=False)  # fmt: skip
ROPE = dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=1.0)
PRESETS = {
    # The encoder's sizes are the defaults of transformers, which name this checkpoint; those of the
    # language model do not fit that encoder's output, and these are from memory.
    "glm-ocr": dict(dtype="bfloat16",
        vision=VISION | dict(depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16,
            out_hidden_size=1536),
        text=TEXT | dict(hidden_size=1536, intermediate_size=4608, num_hidden_layers=16,
            num_attention_heads=16, num_key_value_heads=8, head_dim=128, vocab_size=59392,
            rope_parameters=ROPE | dict(mrope_section=[16, 24, 24]))),
    "tiny-glm-ocr": dict(dtype="float32",
        vision=VISION | dict(depth=2, hidden_size=64, intermediate_size=96, num_heads=4,
            out_hidden_size=64),
        text=TEXT | TINY_TEXT | dict(num_hidden_layers=3, max_position_embeddings=4096,
            rope_parameters=ROPE | dict(mrope_section=[2, 3, 3]))),
}  # fmt: skip
GAINS = {"patch_embed": 3.0, "qkv": 1.5, "downsample": 1.5, "proj": 1.5, "gate_up_proj": 1.5}
CHAT = "{{- '[gMASK]<sop>' }}" + MESSAGES + """\
    {{- '<|' + message.role + '|>\\n' }}
    {%- for part in parts %}
        {%- if part.type == 'text' %}{{- part.text }}
        {%- else %}
            {{- '<|begin_of_' + part.type + '|><|' + part.type + '|><|end_of_' + part.type + '|>' }}
        {%- endif %}
    {%- endfor %}
{%- endfor %}
{{- '<|assistant|>\\n' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Byte-level BPE, special tokens after all words."""
    words = preset["text"]["vocab_size"] - len(SPECIAL)
    return byte_level(words, [], SPECIAL, pre_tokenizers.Digits(True), tiny(preset))


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset and its token ids."""
    end, user = (tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|user|>"))
    text = preset["text"] | {"pad_token_id": end, "eos_token_id": [end, user]}
    vision = preset["vision"] | {"model_type": "glm_ocr_vision"}
    names = {"image": "<|image|>", "video": "<|video|>"}
    sides = [(f"{kind}_{side}", f"<|{word}_of_{kind}|>") for kind in names
             for side, word in (("start", "begin"), ("end", "end"))]  # fmt: skip
    ids = {f"{name}_token_id": tokenizer.token_to_id(t) for name, t in [*names.items(), *sides]}
    return vlm_config("GlmOcr", "glm_ocr", preset, text, vision) | ids


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text = config["text_config"]
    image = image_processor("Glm46V", "Glm46V") | {
        "resample": 3,  # BICUBIC
        # Of both frames that a still is; tests have small pictures.
        "size": {"shortest_edge": 1568 if tiny(preset) else 12544, "longest_edge": 11760000},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    del image["do_pad"]
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    generation = {name: text[name] for name in ("eos_token_id", "pad_token_id")}
    made = vlm_files("Glm46V", text, image, {}, special, SPECIAL[1:], generation, CHAT)
    # By these names its processor asks the tokenizer for them.
    made["tokenizer_config.json"]["extra_special_tokens"] = NAMED
    return made
