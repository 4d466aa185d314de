"""What checkpoints of SigLIP and SigLIP 2 share."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, processors

from checkpoints.shared.letters import BLANK, letters
from checkpoints.shared.presets import tiny

FIRST = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
ROLES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
# They read padding as they read words, so their published tokenizers give no mask.
NO_MASK = {"model_input_names": ["input_ids"]}


def siglip_tokenizer(preset: dict, normalizer: Any = BLANK) -> Tokenizer:
    """SigLIP 2's, which is Gemma's with <eos> after a text."""
    made = letters(preset["text"]["vocab_size"], FIRST, tiny(preset), normalizer)
    made.post_processor = processors.TemplateProcessing("$A <eos>", None, [("<eos>", 1)])
    return made
