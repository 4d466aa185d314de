"""FastVLM: FastViTHD of timm, which writing one needs, and Qwen2."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.presets import MESSAGES, QWEN2_TEXT, TINY_TEXT
from checkpoints.shared.words import QWEN2_FIRST, qwen2_tokenizer

UNTIED = QWEN2_TEXT | dict(tie_word_embeddings=False)
PRESETS = {
    "fastvlm-0.5b": dict(dtype="bfloat16", side=1024,
        vision=dict(hidden_size=3072, model_args=dict(inference_mode=True)),
        text=UNTIED | dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
            num_attention_heads=14, num_key_value_heads=2, vocab_size=152000)),
    "tiny-fast-vlm": dict(dtype="float32", side=256,
        vision=dict(hidden_size=128, model_args=dict(inference_mode=True,
            layers=[1, 1, 1, 1, 1], embed_dims=[8, 8, 16, 32, 64])),
        text=UNTIED | TINY_TEXT),
}  # fmt: skip
SPECIAL = [*QWEN2_FIRST, "<image>"]
# As loud as what enters, with a residual in each block; `fc1` and `fc2` are of all encoders.
GAINS = {"reparam_conv": 1.4, "conv": 1.4, "qkv": 1.4, "proj": 1.4}
CONSTANTS = {"gamma": 0.7, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
CHAT = MESSAGES + """\
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for part in parts if part.type == 'image' %}{{- '<image>' }}
        {{- '\\n' if loop.last else '' }}
    {%- endfor %}
    {%- for part in parts if part.type == 'text' %}{{- part.text }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Qwen2's, with a word for pictures."""
    return qwen2_tokenizer(preset, SPECIAL)


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    start, _, end = (tokenizer.token_to_id(token) for token in QWEN2_FIRST)
    text = dict(preset["text"], bos_token_id=start, eos_token_id=end, pad_token_id=start)
    vision = dict(model_type="timm_wrapper", architecture="fastvit_mci3", do_pooling=True,
        global_pool="avg", **preset["vision"])  # fmt: skip
    return vlm_config("FastVlm", "fast_vlm", preset, text, vision) | {
        "image_token_index": tokenizer.token_to_id("<image>"),
        "image_seq_length": (preset["side"] // 64) ** 2,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": True,
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, size = config["text_config"], preset["side"]
    image = image_processor("CLIP", "Llava") | {
        "resample": 3,  # BICUBIC
        "do_center_crop": True,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
    }
    del image["do_pad"]
    processor = {
        "image_token": "<image>",
        "patch_size": 64,
        "vision_feature_select_strategy": "full",
        "num_additional_image_tokens": 0,
    }
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    generation, extra = generation_ids(text), SPECIAL[1:]
    return vlm_files("Llava", text, image, processor, special, extra, generation, CHAT)
