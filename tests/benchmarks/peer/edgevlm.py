"""edgevlm itself: bundles of one tile and all its 64 tokens, target onnx.

Options are those of a laptop that has room for everything: one block for each stage (of ten layers
in 4 bits), and a chunk of the 96 rows that the first prompt has, so that one of 352 computes
384. The 4-bit form keeps the encoder in 8 bits: fewer would save bytes, not time. `w8a8s` has an
encoder whose rows are rounded with scales that scenes gave beforehand. Two forms of it merge
patches inside the encoder, to a half and to a quarter: what they give is not what all patches give,
so no peer is compared with them. Matrices are packed once per machine, in edgevlm's cache, before
anything is measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peer._given import PROMPTS, Array, Given

PACKAGES: tuple[str, ...] = ()
CHECK = "edgevlm"
SETTINGS: dict[str, str] = {}
VARIANTS = {
    "fp32": "fp32",
    "w8a8": "int8",
    "w8a8s": "int8",
    "w8a8s-half": "int8",
    "w8a8s-quarter": "int8",
    "w4g32a8": "int4",
}
SAYS = {
    "fp32": "ONNX Runtime, float32",
    "w8a8": "ONNX Runtime, every stage w8a8",
    "w8a8s": "ONNX Runtime, encoder w8a8s, decoder and head w8a8",
    "w8a8s-half": "the same, tome@vision:patches=512,by=6",
    "w8a8s-quarter": "the same, tome@vision:patches=256,by=8",
    "w4g32a8": "ONNX Runtime, decoder and head w4g32a8, encoder w8a8",
}
METHODS = {
    "w8a8s-half": ("tome@vision:patches=512,by=6",),
    "w8a8s-quarter": ("tome@vision:patches=256,by=8",),
}
QUANTIZE = {
    "fp32": "none",
    "w8a8": "w8a8",
    "w8a8s": "w8a8,vision=w8a8s",
    "w4g32a8": "w8a8,decoder=w4g32a8,head=w4g32a8",
}
SCENES = "8"  # for calibration
# Of 4 bits, 30 layers with random weights are further from PyTorch than a block may be.
WHOLE, BLOCK_BYTES = 4 * 10**9, {"w4g32a8": 150 * 10**6}


def prepare(given: Given, variant: str) -> None:
    """Export the bundle, and open it once so that its matrices are packed."""
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    path = _path(given, variant)
    if not path.exists():
        recipe = Recipe(
            model=given.model,
            quantize=QUANTIZE[variant.partition("-")[0]],
            methods=METHODS.get(variant, ()),
            chunk=min(PROMPTS),
            block_size_bytes=BLOCK_BYTES.get(variant, WHOLE),
            calibrate=SCENES if variant.startswith("w8a8s") else None,
        )
        export(recipe, path)
        open(given, variant)


def open(given: Given, variant: str) -> Loop:
    """The bundle, without a budget."""
    return Loop(_path(given, variant), given)


def _path(given: Given, variant: str) -> Path:
    return given.folder("edgevlm") / f"{variant}.edgevlm"


class Loop:
    """The text loop of a bundle."""

    def __init__(self, path: Path, given: Given) -> None:
        import onnxruntime

        from edgevlm.runtimes.loading import load_loop
        from edgevlm.runtimes.loops.sequence import text_rows

        self.versions = {"onnxruntime": onnxruntime.__version__}
        self._loop, self._rows = load_loop(path, threads=given.threads), text_rows
        self._pixels = given.pixels

    def see(self) -> Array:
        """Features [64, C]; `see` of the loop would resize, and remember the picture."""
        features: Array = self._loop._encode(self._pixels).tokens
        return features

    def prefill(self, ids: Array) -> Array:
        """Scores [V]."""
        self._loop.forget()
        return self._run(ids)

    def step(self, token: int) -> Array:
        """Scores [V]."""
        return self._run(np.asarray([token]))

    def _run(self, ids: Array) -> Array:
        rows = np.asarray(self._loop.table[ids])
        self._loop.prefill(self._rows(self._loop.plan, rows, self._loop.position))
        scores: Array = self._loop.logits()
        return scores
