"""The models that answer questions: a bundle by its engine, or a checkpoint in PyTorch.

A bundle encodes an image once, for its first question, whose time to first token is measured; later
questions about it reuse the visual tokens. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.plan import MANIFEST
from edgevlm.errors import RecipeError
from edgevlm.evaluation.evaluate import MAX_NEW_TOKENS, Answerer, Reply
from edgevlm.libraries import require_torch
from edgevlm.recipe import Recipe
from edgevlm.runtimes.loading import load_loop, loop_class
from edgevlm.runtimes.loops.spelling import Visual
from edgevlm.runtimes.loops.text import TextLoop


def is_bundle(name: str) -> bool:
    """Whether a name means a bundle: a folder with a manifest, or a missing `.edgevlm`."""
    path = Path(name)
    return (path / MANIFEST).is_file() or (path.suffix == ".edgevlm" and not path.is_dir())


def answerer(
    name: str, frames: int | None = None, engine: str | None = None, threads: int | None = None
) -> Answerer:
    """Open a bundle or load a checkpoint.

    Args:
        name: A bundle, or a checkpoint: hub id, folder, or `embedded`.
        frames: Frames of a clip, for a checkpoint; None is images.
        engine: Engine, for a bundle.
        threads: Threads; None takes all cores.

    Raises:
        RecipeError: If an option does not fit a bundle or a checkpoint, or it answers no questions.
        EdgeVLMError: If it cannot be opened.
    """
    if is_bundle(name):
        if frames is not None:
            raise RecipeError("a bundle has its frames already; --frames goes with a model")
        return BundleAnswerer(name, engine, threads)
    if engine is not None:
        raise RecipeError(f"'{name}' is a model, which PyTorch runs; --engine goes with a bundle")
    require_torch()
    from edgevlm.evaluation.pytorch import PyTorchAnswerer

    return PyTorchAnswerer.open(Recipe(model=name, frames=frames or 1), threads)


class BundleAnswerer:
    """A bundle, its blocks loaded and warmed up."""

    def __init__(
        self,
        path: str | Path,
        engine: str | None = None,
        threads: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        # The loop, not `generate`: it accepts visual tokens that are encoded already.
        if loop_class(Bundle.open(path).plan.kind) is not TextLoop:
            raise RecipeError(f"'{path}' answers no questions; give a vision-language model")
        loop = load_loop(path, engine, threads)
        assert isinstance(loop, TextLoop)
        self._loop, self._max_new_tokens, plan = loop, max_new_tokens, loop.plan
        image = plan.host.image
        self.engine, self.frames = self._loop.blocks.engine.name, image.frames
        self.visual_tokens, self.picker = plan.host.visual_tokens, image.picker
        self.bundle_bytes: int | None = sum(file.bytes for file in plan.files)
        self.set_frames([Image.new("RGB", (image.width, image.height))] * image.frames)
        self.ask("", follow_up=False)

    def set_frames(self, frames: Sequence[Image.Image]) -> None:
        """Take the frames; the first question encodes them."""
        self._frames, self._encoded = frames, list[Visual]()

    def ask(self, prompt: str, follow_up: bool) -> Reply:
        """Answer greedily; see `Answerer`."""
        first = not self._encoded
        if not follow_up:
            self._loop.reset()
        visuals = tuple if follow_up else self._encode
        answer = self._loop.ask(prompt, visuals, self._max_new_tokens)
        return Reply(answer.text, answer.ttft_ms if first else None)

    def _encode(self) -> list[Visual]:
        if not self._encoded:
            self._encoded = [self._loop.see(self._frames)]
        return self._encoded
