"""PyTorch, eager: transformers' own model in float32, scaled-dot-product attention, DynamicCache.

The reference of every other peer's outputs.
"""

from __future__ import annotations

from typing import Any

from peer._given import Array, Given

PACKAGES: tuple[str, ...] = ()
CHECK = "torch"
SETTINGS: dict[str, str] = {}
VARIANTS = {"fp32": "fp32"}
SAYS = {"fp32": "eager, float32, sdpa, inference mode"}


def prepare(given: Given, variant: str) -> None:
    """Nothing: the checkpoint is what it runs."""


def open(given: Given, variant: str) -> Eager:
    """The checkpoint in float32."""
    return Eager(given)


class Eager:
    """The model of the checkpoint."""

    def __init__(self, given: Given) -> None:
        import torch
        import transformers
        from transformers import AutoModelForImageTextToText, DynamicCache

        torch.set_num_threads(given.threads)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self._torch, self._cache = torch, DynamicCache
        self._model = AutoModelForImageTextToText.from_pretrained(
            given.model, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self._pixels = torch.from_numpy(given.pixels)[None]
        self._past: Any = None

    def see(self) -> Array:
        """Features [64, C]."""
        with self._torch.inference_mode():
            made = self._model.model.get_image_features(self._pixels).pooler_output
        return self._torch.cat(list(made)).numpy()

    def prefill(self, ids: Array) -> Array:
        """Scores [V]."""
        self._past = self._cache(config=self._model.config.text_config)
        return self._run(ids)

    def step(self, token: int) -> Array:
        """Scores [V]."""
        return self._run([token])

    def _run(self, ids: Any) -> Array:
        given = self._torch.as_tensor(ids)[None]
        with self._torch.inference_mode():
            hidden = self._model.model.text_model(
                input_ids=given, cache=self._past, use_cache=True
            ).last_hidden_state
            scores: Array = self._model.lm_head(hidden[:, -1:])[0, 0].numpy()
        return scores
