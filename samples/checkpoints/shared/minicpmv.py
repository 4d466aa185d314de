"""What checkpoints of MiniCPM-V 4.6 and 4.7 share: words, config.json and the other files."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared import qwen3_5
from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.presets import TINY_VISION
from checkpoints.shared.qwen3_5 import TEXT, TINY
from checkpoints.shared.words import qwen3_5_tokenizer

# Marks by their role; the processor asks the tokenizer for them.
MARKS = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
    "image_start_token": "<image>", "image_end_token": "</image>",
    "slice_start_token": "<slice>", "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
}  # fmt: skip
SPECIAL = [*qwen3_5.SPECIAL, *list(MARKS.values())[2:]]
SMALL = dict(dtype="float32", insert_layer_id=0, scale_resolution=224,
    vision=TINY_VISION | dict(image_size=140, patch_size=14),
    text=TEXT | TINY)  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Qwen3.5's, with words for pictures and their slices."""
    return qwen3_5_tokenizer(preset, SPECIAL)


def config(name: str, preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json of MiniCPMV4_N: the preset and its token ids."""
    ids = {name: tokenizer.token_to_id(MARKS[name]) for name in ("image_token", "video_token")}
    start, _, end = (tokenizer.token_to_id(token) for token in SPECIAL[:3])
    text = preset["text"] | {"bos_token_id": start, "eos_token_id": end, "pad_token_id": start}
    vision = preset["vision"] | {"model_type": f"{name.lower()}_vision"}
    return vlm_config(name, name.lower(), preset, text, vision) | {
        "insert_layer_id": preset["insert_layer_id"],
        "downsample_mode": preset.get("downsample_mode", "16x"),
        **{f"{name}_id": number for name, number in ids.items()},
    }


def files(name: str, preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text = config["text_config"]
    numbers = image_processor("MiniCPMV4_6", name) | {
        "resample": 3,  # BICUBIC
        "patch_size": config["vision_config"]["patch_size"],
        "scale_resolution": preset["scale_resolution"],
        "max_slice_nums": 9,
        "slice_mode": True,
        "use_image_id": True,
        "downsample_mode": config["downsample_mode"],
    }
    del numbers["do_pad"]
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    chat = qwen3_5.chat("'<|' + part.type + '_pad|>'")
    extra, ids = SPECIAL[1:], generation_ids(text)
    made = vlm_files(name, text, numbers, {}, special, extra, ids, chat)
    made["tokenizer_config.json"] |= {"extra_special_tokens": MARKS}
    return made
