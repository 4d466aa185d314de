"""LFM2-VL: SigLIP 2 NaFlex, and LFM2, short convolutions with attention between them."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Regex, Tokenizer, pre_tokenizers, processors

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.presets import BASE, MESSAGES, TINY_TEXT, TINY_VISION, tiny
from checkpoints.shared.words import QWEN2_CUT, byte_level

ATTENDING = [2, 5, 8, 10, 12, 14]
TEXT = dict(model_type="lfm2", vocab_size=65536, num_hidden_layers=16, norm_eps=1e-5,
    num_key_value_heads=8, max_position_embeddings=128000, rope_theta=1000000.0, conv_L_cache=3,
    conv_bias=False, block_multiple_of=256, block_ffn_dim_multiplier=1.0,
    block_auto_adjust_ff_dim=True, full_attn_idxs=ATTENDING, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=7, pad_token_id=0)  # fmt: skip
VISION = dict(patch_size=16, num_patches=256, hidden_act="gelu_pytorch_tanh")
PRESETS = {
    "lfm2-vl-450m": dict(dtype="bfloat16", words=65536, projector=2560, side=512,
        vision=BASE | VISION,
        text=TEXT | dict(hidden_size=1024, intermediate_size=6656, num_attention_heads=16)),
    "lfm2-vl-1.6b": dict(dtype="bfloat16", words=65536, projector=2560, side=512,
        vision=VISION | dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
            num_attention_heads=16),
        text=TEXT | dict(hidden_size=2048, intermediate_size=12288, num_attention_heads=32)),
    "tiny-lfm2-vl": dict(dtype="float32", words=1024, projector=96, side=64,
        vision=TINY_VISION | VISION | dict(patch_size=4, num_patches=49),
        text=TEXT | TINY_TEXT | dict(num_hidden_layers=4, full_attn_idxs=[1, 3],
            block_auto_adjust_ff_dim=False)),
}  # fmt: skip
FIRST = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>",
         "<|im_start|>", "<|im_end|>"]  # fmt: skip
NAMED = {"image_token": "<image>", "image_start_token": "<|image_start|>",
    "image_end_token": "<|image_end|>", "image_thumbnail": "<|img_thumbnail|>"}  # fmt: skip
IMAGE_ID = 396  # as published
# The short convolution's; its gates enter as products.
GAINS = {"in_proj": 1.5, "conv": 1.5, "w1": 1.5, "w3": 1.0, "w2": 1.0}
CHAT = "{{- bos_token -}}\n" + MESSAGES + """\
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for part in parts %}
        {%- if part.type == 'text' %}{{- part.text }}
        {%- else %}{{- '<image>' }}{%- endif %}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Byte-level BPE, all special tokens before the words; <|startoftext|> begins a text."""
    few = tiny(preset)
    side = range(1, 3 if few else 11)
    rows = [f"<|img_row_{r}_col_{c}|>" for r in side for c in side]
    free = [] if few else [f"<|reserved_{i}|>" for i in range(len(FIRST), IMAGE_ID)]
    image, *others = NAMED.values()
    special = [*FIRST, *free, image, *rows, *others]
    cut = pre_tokenizers.Split(Regex(QWEN2_CUT), behavior="isolated")
    made = byte_level(preset["words"], special, [], cut, few)
    start = [("<|startoftext|>", 1)]
    made.post_processor = processors.TemplateProcessing("<|startoftext|> $A", special_tokens=start)
    return made


def config(preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset and its token ids."""
    vision = {"model_type": "siglip2_vision_model", "vision_use_head": False, **preset["vision"]}
    return vlm_config("Lfm2Vl", "lfm2_vl", preset, dict(preset["text"]), vision) | {
        "image_token_id": tokenizer.token_to_id("<image>"),
        "projector_hidden_size": preset["projector"],
        "projector_hidden_act": "gelu",
        "projector_bias": True,
        "projector_use_layernorm": True,
        "downsample_factor": 2,
    }


def files(preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder."""
    text, patch = config["text_config"], preset["vision"]["patch_size"]
    most = (preset["side"] // patch // 2) ** 2
    image = image_processor("Lfm2Vl", "Lfm2Vl") | {
        "resample": 2,  # BILINEAR
        "size": {"height": preset["side"], "width": preset["side"]},
        "tile_size": preset["side"],
        "encoder_patch_size": patch,
        "downsample_factor": 2,
        "min_image_tokens": most // 4,
        "max_image_tokens": most,
        "max_num_patches": 4 * most,
        "do_image_splitting": True,
        "min_tiles": 2,
        "max_tiles": 10,
        "use_thumbnail": True,
    }
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    extra = ["<|im_start|>", *NAMED.values()]
    made = vlm_files("Lfm2Vl", text, image, {}, special, extra, generation_ids(text), CHAT)
    # By these names its processor asks the tokenizer for them.
    made["tokenizer_config.json"]["extra_special_tokens"] = NAMED
    return made
