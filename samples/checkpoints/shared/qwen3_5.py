"""What checkpoints over Qwen3.5's language model share: words, weights, the chat template."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.qwen_vl import SPECIAL as QWEN_SPECIAL
from checkpoints.shared.words import qwen3_5_tokenizer

# In the order of their published ids.
SPECIAL = [
    *QWEN_SPECIAL, "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>",
    "</tool_response>", "<think>", "</think>",
]  # fmt: skip
ROPE = dict(rope_type="default", rope_theta=10000000.0, partial_rotary_factor=0.25,
    mrope_interleaved=True)  # fmt: skip
TEXT = dict(model_type="qwen3_5_text", vocab_size=248320, hidden_act="silu", rms_norm_eps=1e-6,
    max_position_embeddings=262144, tie_word_embeddings=True, attention_bias=False, head_dim=256,
    full_attention_interval=4, linear_conv_kernel_dim=4, linear_key_head_dim=128,
    linear_value_head_dim=128, rope_parameters=ROPE | dict(mrope_section=[11, 11, 10]))  # fmt: skip
TINY = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, vocab_size=1024, linear_key_head_dim=16,
    linear_value_head_dim=24, linear_num_key_heads=2, linear_num_value_heads=4,
    max_position_embeddings=4096,
    rope_parameters=ROPE | dict(mrope_section=[2, 1, 1]))  # fmt: skip
GAINS = {"in_proj_qkv": 1.5, "in_proj_z": 1.5, "in_proj_a": 1.0, "in_proj_b": 1.0, "conv1d": 1.5}
# Heads remember about 50 tokens, some 10 and some 500: exp(-exp(A_log) log(1 + exp(-4))).
STDS, CONSTANTS = {"A_log": 1.0}, {"dt_bias": -4.0}
# A whole message is trimmed, and only what is generated begins with an empty thought.
CHAT = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set parts = [{'type': 'text', 'text': content}] if content is string else content %}
    {%- set written %}
        {%- for part in parts %}
            {%- if part.type == 'text' %}{{- part.text }}
            {%- else %}{{- IMAGE }}{%- endif %}
        {%- endfor %}
    {%- endset %}
    {{- '<|im_start|>' + message.role + '\\n' + (written | string | trim) + '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' if add_generation_prompt else '' }}"""


def chat(image: str) -> str:
    """The chat template, with what stands for a picture."""
    return CHAT.replace("IMAGE", image)


def tokenizer(preset: dict) -> Tokenizer:
    """Byte-level BPE of Qwen3.5: special tokens after all words."""
    return qwen3_5_tokenizer(preset, SPECIAL)


def norm_offset(name: str) -> float:
    """What the language model adds to the weight of a norm; its gated norms have none."""
    return float(".language_model." in name and ".linear_attn." not in name)
