"""What checkpoints of DeepSeek-VL and Janus share: Llama, and pictures filled up to a square."""

# ruff: noqa: RUF001 -- their tokens have wide bars

from __future__ import annotations

from tokenizers import Tokenizer, pre_tokenizers, processors

from checkpoints.shared.files import generation_ids, image_processor, vlm_files
from checkpoints.shared.presets import MESSAGES, tiny
from checkpoints.shared.words import byte_level

START, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
MARKS = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>"}  # fmt: skip
LAST = [*MARKS.values(), "<pad>"]
CHAT = MESSAGES + """\
    {{- 'User: ' if message.role == 'user' else 'Assistant: ' }}
    {%- for part in parts %}
        {{- '<image_placeholder>' if part.type == 'image' else part.text }}
    {%- endfor %}
    {{- '\\n\\n' if message.role == 'user' else '<｜end▁of▁sentence｜>' }}
{%- endfor %}
{{- 'Assistant:' if add_generation_prompt else '' }}"""  # fmt: skip


def tokenizer(preset: dict) -> Tokenizer:
    """Byte-level BPE that puts a token in front of a text."""
    words, digits = preset["text"]["vocab_size"] - len(LAST), pre_tokenizers.Digits(True)
    made = byte_level(words, [START, END], LAST, digits, tiny(preset))
    made.post_processor = processors.TemplateProcessing(f"{START} $A", None, [(START, 0)])
    return made


def files(name: str, preset: dict, config: dict, numbers: dict) -> dict[str, dict | str]:
    """The other files of the folder, as published.

    Args:
        name: The first part of the classes' names.
        preset: The preset.
        config: config.json.
        numbers: Of the image processor, beside what both have.
    """
    size = preset["vision"]["image_size"]
    image = image_processor(name, name) | {
        "resample": 3,  # BICUBIC
        "size": {"height": size, "width": size},
        **numbers,
    }
    tokens = (size // preset["vision"]["patch_size"]) ** 2
    special = {"bos_token": START, "eos_token": END, "pad_token": "<pad>"}
    text = config["text_config"]
    made = vlm_files(name, text, image, {"num_image_tokens": tokens}, special, LAST[:-1],
        generation_ids(text), CHAT)  # fmt: skip
    # By these names its processor asks the tokenizer for them.
    made["tokenizer_config.json"]["extra_special_tokens"] = MARKS
    return made
