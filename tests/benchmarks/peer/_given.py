"""What every peer gets: the checkpoint, a folder, threads, one picture and one row of token ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PROMPTS = (96, 352)  # rows of a prefill: 64 visual tokens and 32 of text; five times 64 and 32
DECODED = 32  # tokens after the longer prompt
SEED = 7


@dataclass(frozen=True)
class Given:
    """One benchmark: where the weights are, where files go, what is asked."""

    model: str
    work: Path
    threads: int

    @cached_property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        made: dict[str, Any] = json.loads((Path(self.model) / "config.json").read_text())
        return made

    @cached_property
    def photo(self) -> Array:
        """One tile as bytes [512, 512, 3], what image loaders give."""
        return np.asarray(np.load(self.work / "photo.npy"))

    @cached_property
    def pixels(self) -> Array:
        """The same tile as the encoder takes it: f32 [1, 3, 512, 512] from -1 to 1."""
        scaled = self.photo.astype(np.float32) / 255 * 2 - 1
        return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])

    @cached_property
    def ids(self) -> Array:
        """Token ids of the longest prompt and of what follows it, i64."""
        random = np.random.default_rng(SEED)
        words = self.config["text_config"]["vocab_size"] - 1000  # special tokens are at the ends
        return random.integers(500, words, max(PROMPTS) + DECODED)

    def folder(self, name: str) -> Path:
        """A peer's own folder."""
        made = self.work / name
        made.mkdir(parents=True, exist_ok=True)
        return made


class Peer(Protocol):
    """A model in memory; one conversation at a time."""

    versions: dict[str, str]

    def see(self) -> Array:
        """Features [64, C] of the tile: encoder and connector."""

    def prefill(self, ids: Array) -> Array:
        """Scores [V] after these tokens, in an empty cache."""

    def step(self, token: int) -> Array:
        """Scores [V] after one more token."""


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """A folder that `make` filled to the end; one that was left half done is made again."""
    done = path / "done"
    if not done.exists():
        path.mkdir(parents=True, exist_ok=True)
        make(path)
        done.touch()
    return path


def text_checkpoint(given: Given) -> Path:
    """The language model and its tied head as a checkpoint of a Llama, in float32."""

    def make(path: Path) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

        whole = AutoModelForImageTextToText.from_pretrained(given.model, dtype=torch.float32)
        config = LlamaConfig.from_dict(whole.config.text_config.to_dict())
        config.architectures, config.tie_word_embeddings = ["LlamaForCausalLM"], True
        config.dtype = torch.float32
        text = LlamaForCausalLM(config)
        text.model.load_state_dict(whole.model.text_model.state_dict())
        text.tie_weights()
        text.save_pretrained(path)
        for file in Path(given.model).glob("*token*.json"):
            (path / file.name).write_bytes(file.read_bytes())

    return once(given.folder("text"), make)
