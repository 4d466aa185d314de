"""What checkpoints of SmolVLM and Idefics3 share."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer, pre_tokenizers

from checkpoints.shared.files import image_processor, vlm_config, vlm_files
from checkpoints.shared.presets import MESSAGES, SMOLLM_TEXT, TINY_TEXT, TINY_VISION, tiny
from checkpoints.shared.words import byte_level

TINY = dict(dtype="float32", scale_factor=2,
    vision=TINY_VISION | dict(image_size=128, patch_size=8),
    text=SMOLLM_TEXT | TINY_TEXT)  # fmt: skip
SPECIAL = ["<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
    "<fake_token_around_image>", "<image>"]  # fmt: skip
CHAT = "<|im_start|>\n" + MESSAGES + """\
    {{- message.role | capitalize + (':' if parts[0].type == 'image' else ': ') }}
    {%- for part in parts %}
        {{- part.text if part.type == 'text' else '<' + part.type + '>' }}
    {%- endfor %}
    {{- '<end_of_utterance>\\n' }}
{%- endfor %}
{{- 'Assistant:' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Byte-level BPE with three special tokens first, the others after the words."""
    reserved = [] if tiny(preset) else [f"<|reserved_special_token_{i}|>" for i in range(88)]
    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    last = [*SPECIAL, *reserved, "<end_of_utterance>"]
    words = preset["text"]["vocab_size"] - len(last)
    return byte_level(words, first, last, pre_tokenizers.Digits(True), tiny(preset))


def idefics_config(name: str, family: str, preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json: the preset, its token ids and the family's constants."""
    vision = {"model_type": f"{family}_vision", **preset["vision"]}
    return vlm_config(name, family, preset, dict(preset["text"]), vision) | {
        "image_token_id": tokenizer.token_to_id("<image>"),
        "scale_factor": preset["scale_factor"],
        "pad_token_id": 2,
    }


def idefics_files(name: str, preset: dict, config: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published."""
    text, vision = config["text_config"], preset["vision"]
    image = image_processor(name, name) | {
        "resample": 1,  # LANCZOS
        "do_image_splitting": True,
        "size": {"longest_edge": 4 * vision["image_size"]},
        "max_image_size": {"longest_edge": vision["image_size"]},
    }
    side = vision["image_size"] // vision["patch_size"] // preset["scale_factor"]
    special = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>"}
    special |= {"pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    generation = {"bos_token_id": 0, "eos_token_id": text["vocab_size"] - 1, "pad_token_id": 2}
    extra = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    processor = {"image_seq_len": side**2}
    return vlm_files(name, text, image, processor, special, extra, generation, CHAT)
