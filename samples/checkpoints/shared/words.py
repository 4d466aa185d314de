"""Tokenizers of language models, trained on the spot; built as the published ones."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from checkpoints.shared.presets import tiny
from checkpoints.shared.texts import texts

LLAMA_SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
# Before <|endoftext|> come all words of Qwen2.
QWEN2_WORDS = 151643
QWEN3_5_WORDS = 248044
QWEN2_FIRST = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# GPT-2's way to cut words, as Qwen2 has it: digits one by one, at most one mark before a word.
QWEN2_CUT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
             r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip
QWEN3_5_CUT = QWEN2_CUT.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)


def qwen2_tokenizer(preset: dict, special: list[str]) -> Tokenizer:
    """Byte-level BPE of Qwen2: special tokens after all words."""
    words = preset["text"]["vocab_size"] - len(special) if tiny(preset) else QWEN2_WORDS
    cut = pre_tokenizers.Split(Regex(QWEN2_CUT), behavior="isolated")
    return byte_level(words, [], special, cut, tiny(preset))


def qwen3_5_tokenizer(preset: dict, special: list[str]) -> Tokenizer:
    """Byte-level BPE of Qwen3.5: as Qwen2's, with more words; accents of their own join letters."""
    words = preset["text"]["vocab_size"] - len(special) if tiny(preset) else QWEN3_5_WORDS
    cut = pre_tokenizers.Split(Regex(QWEN3_5_CUT), behavior="isolated")
    made = byte_level(words, [], special, cut, tiny(preset))
    made.normalizer = normalizers.NFC()
    return made


def llama_tokenizer(preset: dict) -> Tokenizer:
    """Byte-level BPE with Llama's special tokens, which puts <s> in front of a text."""
    first, last = LLAMA_SPECIAL[:3], LLAMA_SPECIAL[3:]
    cut = pre_tokenizers.Digits(individual_digits=True)
    words = preset["text"]["vocab_size"] - len(last)
    made = byte_level(words, first, last, cut, tiny(preset))
    start = [("<s>", first.index("<s>"))]
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=start)
    return made


def byte_level(words: int, first: list[str], last: list[str], cut: Any, few: bool) -> Tokenizer:
    """Train byte-level BPE.

    Where the texts at hand yield too few words, numbers fill the vocabulary: never encoded,
    decodable.

    Args:
        words: Size of the vocabulary without `last`.
        first: Special tokens before the words.
        last: Special tokens after them.
        cut: What cuts a text before BPE.
        few: Whether a few texts are enough.
    """
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(first))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pieces])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts(few),
        trainers.BpeTrainer(vocab_size=words, special_tokens=first, min_frequency=1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )  # fmt: skip
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    vocab |= {f"Ġ{1000 + i}": i for i in range(len(vocab), words)}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens(last)
    return tokenizer
