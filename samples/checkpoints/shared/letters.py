"""BPE over letters, with bytes for what is unknown and blanks as marks, as Gemma has it."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from checkpoints.shared.texts import texts

BYTES = [f"<0x{i:02X}>" for i in range(256)]
BLANK = normalizers.Replace(" ", "▁")


def letters(size: int, first: list[str], few: bool, normalizer: Any = BLANK) -> Tokenizer:
    """Train it.

    Args:
        size: Words of the vocabulary.
        first: Special tokens, in front of all words.
        few: Whether a few texts are enough.
        normalizer: What is done to a text first; it ends with `BLANK`.
    """
    start = [*first, *BYTES]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learned = learn(trained, texts(few), size - len(start), [], 300 if few else 3000)
    words = [*start, *sorted(learned["vocab"], key=learned["vocab"].get)]
    words += [f"▁{1000 + i}" for i in range(size - len(words))]
    vocab = {word: i for i, word in enumerate(words)}
    merges = [tuple(pair) for pair in learned["merges"]]
    made = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.normalizer = normalizer
    made.add_special_tokens(first)
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return made


def learn(
    tokenizer: Tokenizer, lines: Any, size: int, alphabet: list[str], most: int, suffix: str = ""
) -> dict:
    """Train a tokenizer to `size` words; its model as a document, with `vocab` and `merges`."""
    trainer = trainers.BpeTrainer(vocab_size=size, end_of_word_suffix=suffix, min_frequency=1,
        initial_alphabet=alphabet, show_progress=False, limit_alphabet=most)  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    return json.loads(tokenizer.to_str())["model"]
