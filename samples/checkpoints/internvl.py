"""InternVL 3: InternViT and Qwen2; InternVL 3.5 over Qwen3."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.presets import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MESSAGES,
    QWEN2_TEXT,
    TINY_TEXT,
    TINY_VISION,
)
from checkpoints.shared.words import QWEN2_FIRST, qwen2_tokenizer

VISION = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
    num_attention_heads=16, image_size=[448, 448], patch_size=[14, 14],
    attention_bias=True, hidden_act="gelu")  # fmt: skip
UNTIED = QWEN2_TEXT | dict(tie_word_embeddings=False)
PRESETS = {
    "internvl3-1b": dict(dtype="bfloat16", vision=VISION,
        text=UNTIED | dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
            num_attention_heads=14, num_key_value_heads=2, vocab_size=151674)),
    "internvl3-2b": dict(dtype="bfloat16", vision=VISION,
        text=UNTIED | dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
            num_attention_heads=12, num_key_value_heads=2, vocab_size=151674)),
    "internvl3.5-1b": dict(dtype="bfloat16", vision=VISION,
        text=UNTIED | dict(model_type="qwen3", hidden_size=1024, intermediate_size=3072,
            num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
            vocab_size=151936)),
    "tiny-internvl": dict(dtype="float32",
        vision=TINY_VISION | dict(image_size=[64, 64], patch_size=[4, 4], attention_bias=True,
            hidden_act="gelu"),
        text=UNTIED | TINY_TEXT),
}  # fmt: skip
NAMED = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>",
    "end_image_token": "</img>", "video_token": "<video>"}  # fmt: skip
SPECIAL = [*QWEN2_FIRST, *NAMED.values()]
GAINS = {"patch_embeddings": 3.0, "projection_layer": 1.5}
STDS = {"cls_token": 0.5, "position_embeddings": 0.5}
CONSTANTS = {"lambda_1": 0.7, "lambda_2": 0.7}
CHAT = MESSAGES + """\
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for part in parts %}
        {%- if part.type == 'text' %}{{- part.text }}
        {%- else %}{{- ('<video>' if part.type == 'video' else '<IMG_CONTEXT>') + '\\n' }}
        {%- endif %}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Qwen2's, with words for pictures."""
    return qwen2_tokenizer(preset, SPECIAL)


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    start, _, end = (tokenizer.token_to_id(token) for token in QWEN2_FIRST)
    text = dict(preset["text"], bos_token_id=start, eos_token_id=end, pad_token_id=start)
    vision = {"model_type": "internvl_vision", **preset["vision"]}
    return vlm_config("InternVL", "internvl", preset, text, vision) | {
        "image_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"),
        "image_seq_length": seen_tokens(preset),
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, (height, width) = config["text_config"], preset["vision"]["image_size"]
    image = image_processor("GotOcr2", "InternVL") | {
        "resample": 3,  # BICUBIC
        "size": {"height": height, "width": width},
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 12,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }
    processor = {"image_seq_length": seen_tokens(preset)}
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    made = vlm_files(
        "InternVL", text, image, processor, special, SPECIAL[1:], generation_ids(text), CHAT
    )
    # By these names its processor asks the tokenizer for them.
    made["tokenizer_config.json"]["extra_special_tokens"] = NAMED
    return made


def seen_tokens(preset: dict) -> int:
    """Visual tokens of a view: patches, folded 2x2."""
    (height, width), (patch, _) = preset["vision"]["image_size"], preset["vision"]["patch_size"]
    return (height // patch // 2) * (width // patch // 2)
