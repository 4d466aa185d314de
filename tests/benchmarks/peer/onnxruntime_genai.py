"""onnxruntime-genai, the text part alone: its builder's graph, its own generator.

    int4   -p int4 -e cpu: symmetric, blocks of 32, accuracy level 4 (rows rounded to 8 bits)
    int8   the same with -p int8

The head computes one row (`prune_lm_head`) and shares the rounded embedding table where the builder
can (`shared_embeddings`). The library takes one thread on its own, so genai_config.json names the
number. Given tokens are appended one by one, as in a conversation.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from peer._given import DECODED, PROMPTS, Array, Given, once, text_checkpoint

PACKAGES = ("onnxruntime-genai>=0.18", "onnx", "onnx-ir", "sentencepiece")
CHECK = "onnxruntime_genai, onnx"
SETTINGS: dict[str, str] = {}
VARIANTS = {"int4": "int4", "int8": "int8"}
SAYS = {
    "int4": "builder -p int4, accuracy level 4",
    "int8": "builder -p int8, accuracy level 4",
}
OPTIONS = ("accuracy_level=4", "block_size=32", "prune_lm_head=true", "shared_embeddings=true")


def prepare(given: Given, variant: str) -> None:
    """Run the builder, then write the number of threads."""
    folder = once(_folder(given, variant), lambda path: _build(given, path, variant))
    config = folder / "genai_config.json"
    written = json.loads(config.read_text())
    session = written["model"]["decoder"]["session_options"]
    session |= {"intra_op_num_threads": given.threads, "inter_op_num_threads": 1}
    config.write_text(json.dumps(written, indent=1))


def open(given: Given, variant: str) -> Text:
    """The model."""
    return Text(_folder(given, variant))


def _folder(given: Given, variant: str) -> Path:
    return given.folder("onnxruntime_genai") / variant


def _build(given: Given, path: Path, variant: str) -> None:
    source = text_checkpoint(given)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
    command += ["-o", str(path), "-p", variant, "-e", "cpu", "-c", str(given.work / "cache")]
    subprocess.run([*command, "--extra_options", *OPTIONS], check=True)


class Text:
    """A model and the generator of one conversation."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai

        self.versions = {"onnxruntime-genai": onnxruntime_genai.__version__}
        self._genai = onnxruntime_genai
        self._model = onnxruntime_genai.Model(str(folder))
        self._talk: Any = None

    def prefill(self, ids: Array) -> Array:
        """Scores [V]."""
        settings = self._genai.GeneratorParams(self._model)
        settings.set_search_options(max_length=max(PROMPTS) + DECODED + 1, do_sample=False)
        self._talk = self._genai.Generator(self._model, settings)
        return self._run(ids)

    def step(self, token: int) -> Array:
        """Scores [V]."""
        return self._run(np.asarray([token]))

    def _run(self, ids: Array) -> Array:
        self._talk.append_tokens(ids.astype(np.int32)[None])
        return np.asarray(self._talk.get_logits()).reshape(-1)
