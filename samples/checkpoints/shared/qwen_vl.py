"""What checkpoints of the Qwen-VL line share: words for pictures, their files, their weights."""

from __future__ import annotations

from tokenizers import Tokenizer

from checkpoints.shared.files import generation_ids, image_processor, vlm_config, vlm_files
from checkpoints.shared.presets import MESSAGES
from checkpoints.shared.words import QWEN2_FIRST, qwen2_tokenizer

START, END, IMAGE, VIDEO = (
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# In the order of their published ids.
SPECIAL = [
    *QWEN2_FIRST, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", START, END, "<|vision_pad|>", IMAGE, VIDEO,
]  # fmt: skip
GAINS = {"patch_embed": 3.0, "qkv": 1.5, "proj": 1.5, "linear_fc1": 1.5, "linear_fc2": 1.0,
         "mlp": 1.2}  # fmt: skip
STDS = {"pos_embed": 0.5, "ln_q": 1.0}
TINY_VISION = {"depth": 4, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4,
               "out_hidden_size": 64}  # fmt: skip
SYSTEM = """\
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
"""
TURN = """\
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for part in parts %}
        {%- if part.type == 'text' %}{{- part.text }}
        {%- else %}{{- '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}{%- endif %}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""


def tokenizer(preset: dict) -> Tokenizer:
    """Qwen2's, with words for pictures, clips and boxes."""
    return qwen2_tokenizer(preset, SPECIAL)


def config(name: str, family: str, preset: dict, tokenizer: Tokenizer) -> dict:
    """config.json of class NAMEForConditionalGeneration."""
    start, _, end = (tokenizer.token_to_id(token) for token in QWEN2_FIRST)
    text = preset["text"] | {"bos_token_id": start, "eos_token_id": end, "pad_token_id": start}
    vision = preset["vision"] | {"model_type": f"{family}_vision"}
    return vlm_config(name, family, preset, text, vision) | {
        "image_token_id": tokenizer.token_to_id(IMAGE),
        "video_token_id": tokenizer.token_to_id(VIDEO),
        "vision_start_token_id": tokenizer.token_to_id(START),
        "vision_end_token_id": tokenizer.token_to_id(END),
    }


def files(
    name: str, config: dict, image: dict, system: bool, kind: str = "Qwen2VL"
) -> dict[str, dict | str]:
    """The other files of the folder.

    Args:
        name: The first part of the classes' names.
        config: config.json.
        image: Numbers of the image processor that are the family's own.
        system: Whether the chat template writes a system turn unasked.
        kind: The first part of the image processor's class.
    """
    text, vision = config["text_config"], config["vision_config"]
    sizes = {"patch_size": vision["patch_size"], "temporal_patch_size": 2, "merge_size": 2}
    common = image_processor(kind, name)
    del common["do_pad"]
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    chat = MESSAGES + (SYSTEM if system else "") + TURN
    numbers = common | {"resample": 3} | sizes | image  # BICUBIC
    return vlm_files(name, text, numbers, {}, special, SPECIAL[1:], generation_ids(text), chat)
