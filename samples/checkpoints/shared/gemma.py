"""What checkpoints over Gemma share: sizes, tokenizer, weights."""

# ruff: noqa: C408

from __future__ import annotations

from tokenizers import Tokenizer, processors

from checkpoints.shared.letters import letters
from checkpoints.shared.llava import published
from checkpoints.shared.presets import TINY_TEXT, tiny

__all__ = ["GAINS", "STDS", "gemma_tokenizer", "norm_offset", "published"]

FIRST = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
ROLES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
GEMMA_TEXT = dict(hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, head_dim=256,
    tie_word_embeddings=True, bos_token_id=2, eos_token_id=1, pad_token_id=0)  # fmt: skip
TINY_GEMMA = GEMMA_TEXT | TINY_TEXT | dict(hidden_activation="gelu_pytorch_tanh")
SO400M = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
    num_attention_heads=16, patch_size=14, hidden_act="gelu_pytorch_tanh")  # fmt: skip
# Rows of the table are multiplied by the root of the width, of which visual tokens have nothing.
STDS = {"embed_tokens": 0.125}
GAINS = {"linear": 1.5, "mm_input_projection_weight": 1.5}


def gemma_tokenizer(preset: dict, words: int, special: list[str]) -> Tokenizer:
    """Gemma's, which puts <bos> in front of a text, with `special` before all words."""
    made = letters(words, [*FIRST, *special], tiny(preset))
    made.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 2)])
    return made


def norm_offset(name: str) -> float:
    """What is added to the weights of a norm: 1 outside the image encoder."""
    return 0.0 if "vision_tower" in name else 1.0
