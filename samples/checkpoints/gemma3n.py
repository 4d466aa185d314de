"""Gemma 3n: MobileNetV5 of timm, which writing one needs, and a decoder of four streams.

Of gemma3n-e2b transformers' defaults and its conversion script tell everything. Sounds have weights
there, which are written with the others and read by no bundle.
"""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.gemma import GEMMA_TEXT, ROLES, STDS, TINY_GEMMA, gemma_tokenizer
from checkpoints.shared.presets import MESSAGES

# What chooses the mixture of streams is divided by the width. The last two are of whole parts.
GAINS = {"modality_router": 64.0, "prediction_coefs": 0.25, "correction_coefs": 0.25,
         "altup_projections": 1.0, "altup_unembed_projections": 1.0, "linear_left": 1.0,
         "linear_right": 1.0, "embedding_projection": 1.0, "per_layer_model_projection": 1.0,
         "per_layer_input_gate": 1.5, "per_layer_projection": 1.0, "timm_model": 1.0,
         "audio_tower": 1.0}  # fmt: skip
STDS = STDS | {"embed_tokens_per_layer": 0.0625, "correct_output_scale": 1.0, "embedding": 1.0}
CONSTANTS = {"gamma": 0.2}
ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
TEXT = dict(model_type="gemma3n_text", max_position_embeddings=32768, final_logit_softcapping=30.0,
    rope_parameters=ROPES, altup_num_inputs=4, altup_active_idx=0, altup_correct_scale=True,
    altup_coef_clip=120.0)  # fmt: skip


def layers(count: int, each: int) -> list[str]:
    """Types of so many layers, of which each so many-th sees all tokens."""
    kinds = ("full_attention", "sliding_attention")
    return [kinds[(layer + 1) % each > 0] for layer in range(count)]


PRESETS = {
    # Last come 128 words for pictures and 128 for sounds.
    "gemma3n-e2b": dict(dtype="bfloat16", words=262144, own=128, side=768, tokens=256, audio={},
        vision={},
        text=GEMMA_TEXT | TEXT | dict(hidden_size=2048, intermediate_size=[8192] * 30,
            num_hidden_layers=30, num_attention_heads=8, num_key_value_heads=2,
            sliding_window=512, layer_types=layers(30, 5), num_kv_shared_layers=10,
            activation_sparsity_pattern=[0.95] * 10 + [0.0] * 20, laurel_rank=64,
            vocab_size=262400, vocab_size_per_layer_input=262144,
            hidden_size_per_layer_input=256)),
    "tiny-gemma3n": dict(dtype="float32", words=1008, own=8, side=64, tokens=16,
        audio=dict(hidden_size=32, conf_num_attention_heads=4, conf_num_hidden_layers=1,
            sscp_conv_channel_size=[8, 4], input_feat_size=16),
        vision=dict(model_args=dict(channel_multiplier=0.05, msfa_output_resolution=4)),
        text=TINY_GEMMA | TEXT | dict(num_hidden_layers=5, intermediate_size=[96] * 5,
            sliding_window=12, layer_types=layers(3, 2) + layers(2, 2), num_kv_shared_layers=2,
            activation_sparsity_pattern=[0.8] * 2 + [0.0] * 3, laurel_rank=8,
            altup_active_idx=1, vocab_size_per_layer_input=1008, hidden_size_per_layer_input=16,
            max_position_embeddings=256)),
}  # fmt: skip
SPECIAL = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<start_of_audio>"]
END, IMAGE, SOUND_END, SOUND = (
    "<end_of_image>", "<image_soft_token>", "<end_of_audio>", "<audio_soft_token>",
)  # fmt: skip
# A system text goes in front of the first question.
CHAT = "{{ bos_token }}{% set ns = namespace(system='') %}" + MESSAGES + """\
    {%- if message.role == 'system' %}{%- set ns.system = parts[0].text + '\\n\\n' %}
    {%- else %}
        {{- '<start_of_turn>' }}
        {{- ('model' if message.role == 'assistant' else message.role) + '\\n' + ns.system }}
        {%- set ns.system = '' %}
        {%- for part in parts %}
            {%- if part.type == 'text' %}{{- part.text | trim }}
            {%- else %}{{- '<' + part.type + '_soft_token>' }}{%- endif %}
        {%- endfor %}
        {{- '<end_of_turn>\\n' }}
    {%- endif %}
{%- endfor %}
{{- '<start_of_turn>model\\n' if add_generation_prompt else '' }}"""  # fmt: skip


def norm_offset(name: str) -> float:
    """Queries and keys are half as long: their scores have no factor."""
    return 0.5 if name.endswith(("q_norm.weight", "k_norm.weight")) else 0.0


def tokenizer(preset: dict) -> Tokenizer:
    """Gemma's, and behind its words those for pictures, then those for sounds."""
    made = gemma_tokenizer(preset, preset["words"], SPECIAL)
    for kind, tokens in (("image", [END, IMAGE]), ("audio", [SOUND_END, SOUND])):
        unused = (f"<unused_{kind}_{index}>" for index in range(preset["own"] - len(tokens)))
        made.add_special_tokens([*tokens, *unused])
    return made


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    words, own = preset["words"], preset["own"]
    vision = dict(model_type="gemma3n_vision", architecture="mobilenetv5_300m_enc",
        hidden_size=2048, vocab_size=own, vocab_offset=words, rms_norm_eps=1e-6, do_pooling=False,
        label_names=["LABEL_0", "LABEL_1"], **preset["vision"])  # fmt: skip
    audio = dict(model_type="gemma3n_audio", vocab_size=own, vocab_offset=words + own,
        **preset["audio"])  # fmt: skip
    made = vlm_config("Gemma3n", "gemma3n", preset, dict(preset["text"]), vision)
    names = {"boi": SPECIAL[2], "eoi": END, "image": IMAGE, "boa": SPECIAL[3], "eoa": SOUND_END,
             "audio": SOUND}  # fmt: skip
    ids = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in names.items()}
    ends = [1, tokenizer.token_to_id("<end_of_turn>")]
    return made | ids | {
        "audio_config": audio,
        "vision_soft_tokens_per_image": preset["tokens"],
        "eos_token_id": ends,
    }  # fmt: skip


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, side = config["text_config"], preset["side"]
    image = image_processor("Siglip", "Gemma3n") | {
        "resample": 2,  # BILINEAR
        "size": {"height": side, "width": side},
        "do_normalize": False,
        "feature_extractor_type": "Gemma3nAudioFeatureExtractor",
    }
    del image["do_pad"]
    generation = generation_ids(text) | {"eos_token_id": config["eos_token_id"]}
    marks = {"boi_token": SPECIAL[2], "eoi_token": END, "image_token": IMAGE,
             "boa_token": SPECIAL[3], "eoa_token": SOUND_END, "audio_token": SOUND}  # fmt: skip
    processor = {"image_seq_length": preset["tokens"], "audio_seq_length": 188}
    made = vlm_files("Gemma3n", text, image, processor, ROLES, [], generation, CHAT)
    made["tokenizer_config.json"] |= {"extra_special_tokens": marks, **marks}
    del made["tokenizer_config.json"]["additional_special_tokens"]
    return made
