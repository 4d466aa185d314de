"""Gemma 4: an encoder of any grid, and a decoder with a second table and shared caches.

Of gemma4-e2b published conversions and transformers' defaults tell hidden size, layers, window,
both tables and the encoder. Assumed are the MLP (6,144, twice as wide in layers without a cache),
one head of keys and 20 layers without a cache; parameters are then the published 5.1 B with tables
and 2.3 B without, sound included.
"""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.gemma import GEMMA_TEXT, ROLES, STDS, TINY_GEMMA, gemma_tokenizer
from checkpoints.shared.presets import MESSAGES

GAINS = {"input_proj": 3.0, "embedding_projection": 1.0, "per_layer_model_projection": 1.0,
         "per_layer_input_gate": 1.5, "per_layer_projection": 1.0}  # fmt: skip
STDS = STDS | {"position_embedding_table": 0.5, "embed_tokens_per_layer": 0.0625}
CONSTANTS = {"layer_scalar": 0.7}
VISION = dict(model_type="gemma4_vision", hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6,
    pooling_kernel_size=3, rope_parameters={"rope_type": "axial", "rope_theta": 100.0})  # fmt: skip
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {
        "rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0,
    },
}  # fmt: skip
TEXT = dict(model_type="gemma4_text", max_position_embeddings=131072, final_logit_softcapping=30.0,
    rope_parameters=ROPES, use_double_wide_mlp=True)  # fmt: skip


def layers(count: int, each: int) -> list[str]:
    """Types of so many layers, of which each so many-th sees all tokens."""
    kinds = ("full_attention", "sliding_attention")
    return [kinds[(layer + 1) % each > 0] for layer in range(count)]


PRESETS = {
    # With 0.7, what 35 layers add at random would make another answer of any other rounding.
    "gemma4-e2b": dict(dtype="bfloat16", words=262144, tokens=280, constants={"layer_scalar": 1.0},
        vision=VISION | dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=16,
            num_attention_heads=12, num_key_value_heads=12, head_dim=64, patch_size=16,
            position_embedding_size=10240),
        text=GEMMA_TEXT | TEXT | dict(hidden_size=1536, intermediate_size=6144,
            num_hidden_layers=35, num_attention_heads=8, num_key_value_heads=1,
            global_head_dim=512, sliding_window=512, layer_types=layers(35, 5),
            num_kv_shared_layers=20, vocab_size=262144, vocab_size_per_layer_input=262144,
            hidden_size_per_layer_input=256)),
    "tiny-gemma4": dict(dtype="float32", words=1024, tokens=70,
        vision=VISION | dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, head_dim=16, patch_size=2,
            position_embedding_size=64),
        text=TINY_GEMMA | TEXT | dict(num_hidden_layers=5, global_head_dim=32, sliding_window=12,
            layer_types=layers(3, 2) + layers(2, 2), num_kv_shared_layers=2,
            vocab_size_per_layer_input=1024, hidden_size_per_layer_input=16,
            max_position_embeddings=256,
            use_bidirectional_attention="vision")),
}  # fmt: skip
# A mark that stands for what is in between begins and ends it, turned round.
SPECIAL = [
    "<|turn>", "<turn|>", "<|image>", "<|image|>", "<image|>", "<|audio>", "<|audio|>", "<audio|>",
    "<|video|>",
]  # fmt: skip
CHAT = "{{ bos_token }}" + MESSAGES + """\
    {{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
    {%- for part in parts %}
        {{- part.text | trim if part.type == 'text' else '<|' + part.type + '|>' }}
    {%- endfor %}
    {{- '<turn|>\\n' }}
{%- endfor %}
{{- '<|turn>model\\n' if add_generation_prompt else '' }}"""  # fmt: skip


def norm_offset(name: str) -> float:
    """Queries and keys are half as long: their scores have no factor."""
    return 0.5 if name.endswith(("q_norm.weight", "k_norm.weight")) else 0.0


def tokenizer(preset: dict) -> Tokenizer:
    """Gemma's, with marks of turns, pictures, sounds and clips."""
    return gemma_tokenizer(preset, preset["words"], SPECIAL)


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    made = vlm_config("Gemma4", "gemma4", preset, dict(preset["text"]), dict(preset["vision"]))
    names = dict(zip(("boi", "image", "eoi", "boa", "audio", "eoa", "video"), SPECIAL[2:],
                     strict=True))  # fmt: skip
    ids = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in names.items()}
    ids["eoa_token_index"] = ids.pop("eoa_token_id")
    return made | ids | {"eos_token_id": [1, tokenizer.token_to_id("<turn|>")]}


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, vision = config["text_config"], config["vision_config"]
    image = image_processor("Gemma4", "Gemma4") | {
        "resample": 3,  # BICUBIC
        "do_normalize": False,
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
        "patch_size": vision["patch_size"],
        "pooling_kernel_size": vision["pooling_kernel_size"],
        "max_soft_tokens": preset["tokens"],
    }
    del image["do_pad"]
    generation = generation_ids(text) | {"eos_token_id": config["eos_token_id"]}
    names = ("boi_token", "image_token", "eoi_token", "boa_token", "audio_token", "eoa_token")
    marks = dict(zip(names, SPECIAL[2:], strict=False))
    video = image | {"max_soft_tokens": 70, "video_processor_type": "Gemma4VideoProcessor"}
    del video["image_processor_type"]
    processor = {"image_seq_length": preset["tokens"], "video_processor": video}
    made = vlm_files("Gemma4", text, image, processor, ROLES, [], generation, CHAT)
    made["tokenizer_config.json"] |= {"extra_special_tokens": marks, **marks}
    del made["tokenizer_config.json"]["additional_special_tokens"]
    return made
