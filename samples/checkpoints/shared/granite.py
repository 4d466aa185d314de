"""What checkpoints over Granite share: its tokenizer, its chat, words for pages."""

from __future__ import annotations

from tokenizers import Tokenizer, pre_tokenizers

from checkpoints.shared.presets import MESSAGES, tiny
from checkpoints.shared.words import byte_level

# Before <|pad|> come all words of the language model.
WORDS = 100256
FIRST = ["<|pad|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"]
ROLES = {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>",
         "unk_token": "<|end_of_text|>"}  # fmt: skip
CHAT = MESSAGES + """\
    {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' }}
    {%- for part in parts %}{{- part.text if part.type == 'text' else '<image>' }}{%- endfor %}
    {{- '<|end_of_text|>\\n' }}
{%- endfor %}
{{- '<|start_of_role|>assistant<|end_of_role|>' if add_generation_prompt else '' }}"""  # fmt: skip


def page_tokens(side: int) -> list[str]:
    """Words for a picture and for its tiles, of which there are so many a side."""
    sides = range(1, side + 1)
    tiles = [f"<row_{row}_col_{column}>" for row in sides for column in sides]
    return ["<image>", "<fake_token_around_image>", "<global-img>", *tiles]


def granite_tokenizer(preset: dict, pages: list[str]) -> Tokenizer:
    """Byte-level BPE, special tokens after all words."""
    few, special = tiny(preset), [*FIRST, *pages]
    words = preset["text"]["vocab_size"] - len(special) if few else WORDS
    return byte_level(words, [], special, pre_tokenizers.Digits(individual_digits=True), few)


def granite_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the text config."""
    pad, end = (tokenizer.token_to_id(token) for token in FIRST[:2])
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": pad}
