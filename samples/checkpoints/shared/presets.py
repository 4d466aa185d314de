"""Sizes that presets of several families share."""

# ruff: noqa: C408 -- presets read better as dict(name=value)

TINY_VISION = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, hidden_act="gelu_pytorch_tanh")  # fmt: skip
TINY_TEXT = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, vocab_size=1024)  # fmt: skip
# A text encoder, not a language model.
TINY_WORDS = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    vocab_size=1024, max_position_embeddings=16)  # fmt: skip
BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
QWEN2_TEXT = dict(model_type="qwen2", vocab_size=152000, hidden_act="silu", rms_norm_eps=1e-6,
    max_position_embeddings=32768, rope_theta=1000000.0, tie_word_embeddings=True,
    bos_token_id=151643, eos_token_id=151645)  # fmt: skip
SMOLLM_TEXT = dict(model_type="llama", vocab_size=49280, head_dim=64, hidden_act="silu",
    max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=2, pad_token_id=2)  # fmt: skip
LLAMA_TEXT = SMOLLM_TEXT | dict(max_position_embeddings=4096, tie_word_embeddings=False)
SIGLIP_IDS = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# The loop over messages with which chat templates begin; `parts` are those of one message.
MESSAGES = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set parts = [{'type': 'text', 'text': content}] if content is string else content %}
"""


def tiny(preset: dict) -> bool:
    """Whether a preset is for tests."""
    return preset["dtype"] == "float32"
