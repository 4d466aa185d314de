"""Tiny checkpoints, and a prompt made twice: by transformers' processor and by our layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Tiny:
    """A tiny model for one recipe: the plan, transformers' model and our parts over it."""

    planned: Any
    model: Any
    parts: Any

    @property
    def plan(self) -> Any:
        return self.planned.plan

    def features(self, pixels: np.ndarray) -> torch.Tensor:
        """Our encoder: views [P, 3, h_px, w_px] through the modules, packed: [1, P*N, C]."""
        from edgevlm.graphs.signals import method_inputs

        features, _ = method_inputs(self.parts, (), torch.from_numpy(pixels))
        return features

    def levels(self, pixels: np.ndarray) -> np.ndarray | None:
        """Features of further levels of our encoder [L, P*N, C], or None."""
        from edgevlm.graphs.signals import method_inputs, observe

        names = self.planned.methods.levels
        if not names:
            return None
        _, found = method_inputs(observe(self.parts, names), names, torch.from_numpy(pixels))
        return np.concatenate([found[name].numpy() for name in names])

    def reference_features(self, pixels: np.ndarray) -> torch.Tensor:
        """The model's own encoder on the same views."""
        family, description = self.planned.checkpoint.family, self.planned.description
        return family.reference_features(self.model, torch.from_numpy(pixels), description)

    def views(self, picture: Image.Image) -> np.ndarray:
        """Our preprocessing of one picture."""
        from edgevlm.runtimes.loops import images

        return images.views([picture], self.plan.host.image)


class Prompt:
    """Our side of a conversation: ids or rows of each turn, from the plan's layout."""

    def __init__(self, tiny: Tiny) -> None:
        self.tiny, self.plan = tiny, tiny.plan
        self.tokenizer = tiny.planned.speller.bundled
        self.position = 0

    def ids(
        self,
        question: str,
        images: int,
        token: int,
        times: Sequence[float] = (),
        duration: float = 0.0,
        turn: bool = False,
    ) -> list[int]:
        """Token ids, with `token` in each visual slot: a table whose row i holds the number i."""
        table = np.arange(self.plan.host.embedding.rows, dtype=np.float32)[:, None]
        table[self.plan.host.vocabulary :] = token
        visual = np.full((self.plan.host.visual_tokens, 1), token, np.float32)
        visuals = [(visual, None)] * images
        rows = self._assemble(table, question, visuals, times, duration, turn).rows
        return rows[:, 0].astype(int).tolist()

    def rows(
        self,
        question: str,
        features: Sequence[torch.Tensor],
        times: Sequence[float] = (),
        duration: float = 0.0,
        levels: Sequence[np.ndarray | None] = (),
    ) -> torch.Tensor:
        """Rows [1, S, C] that the decoder reads; `levels` are those of each picture."""
        from edgevlm.evaluation.pytorch import TableRows

        table = TableRows(self.tiny.parts)
        below = levels or [None] * len(features)
        visuals = [(one[0].numpy(), level) for one, level in zip(features, below, strict=True)]
        self.last = prompt = self._assemble(table, question, visuals, times, duration, False)
        first = self.plan.host.first_position
        if prompt.positions.shape[1] == 1:  # others are compared with `get_rope_index`
            assert prompt.positions[:, 0].tolist() == list(range(first, first + len(prompt.rows)))
        return torch.from_numpy(prompt.rows)[None]

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores [1, S, V] of the rows just made, by the model's language model."""
        parts, prompt = self.tiny.parts, self.last
        made = parts.decoder.own(
            rows[0].numpy(),
            prompt.positions,
            levels=prompt.levels,
            visual=prompt.visual,
            groups=prompt.groups,
        )
        return parts.scores(made.last_hidden_state)

    @staticmethod
    def chat(question: str, images: int = 0, videos: int = 0) -> list[dict[str, Any]]:
        """One user message as transformers' templates take it."""
        content = [{"type": "image"}] * images + [{"type": "video"}] * videos
        return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]

    @classmethod
    def inputs(
        cls, own: Any, question: str, pictures: Sequence[Image.Image], **options: Any
    ) -> Any:
        """What a processor makes of one user message, for its model."""
        text = cls.text(own, question, len(pictures))
        begins = text.startswith(own.tokenizer.bos_token or "\0")
        given = {"images": list(pictures), **options} if pictures else {}
        return own(text=text, return_tensors="pt", add_special_tokens=not begins, **given)

    @staticmethod
    def mixed(own: Any, parts: Sequence[Any], system: str | None = None, **options: Any) -> Any:
        """What a processor makes of texts and pictures, and of a system message before them."""
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in parts
        ]
        told = [{"role": "system", "content": [{"type": "text", "text": system}]}]
        chat = [*(told if system else []), {"role": "user", "content": content}]
        text = own.apply_chat_template(chat, add_generation_prompt=True)
        begins = text.startswith(own.tokenizer.bos_token or "\0")
        pictures = [part for part in parts if not isinstance(part, str)]
        given = {"images": pictures, **options} if pictures else {}
        return own(text=text, return_tensors="pt", add_special_tokens=not begins, **given)

    @classmethod
    def text(cls, own: Any, question: str, images: int) -> str:
        """What a processor takes of it: its template's, or without one pictures and question."""
        if own.chat_template is None:
            return own.image_token * images + question
        return own.apply_chat_template(cls.chat(question, images), add_generation_prompt=True)

    def _assemble(self, table, question, visuals, times, duration, turn) -> Any:
        from edgevlm.runtimes.loops.sequence import assemble
        from edgevlm.runtimes.loops.spelling import Visual

        layout = self.plan.host.layout
        seen = [
            Visual(v, np.arange(len(v), dtype=np.int32), tuple(times), duration, levels=below)
            for v, below in visuals
        ]
        parts = layout.turn if turn else layout.prompt if visuals else layout.text
        first = self.plan.host.first_position
        return assemble(self.plan, parts, table, self.tokenizer, question, seen, first)


@pytest.fixture(scope="session")
def tiny(preset) -> Callable[..., Tiny]:
    """`tiny("tiny-smolvlm", tiles=(2, 2))`: a recipe's plan with the model; weights load once."""
    from edgevlm.models.find import find
    from edgevlm.planning.plan import make_plan
    from edgevlm.recipe import Recipe

    models: dict[tuple[str, int | None], Any] = {}

    @cache
    def make(name: str, **options: Any) -> Tiny:
        path = str(preset(name))
        checkpoint = find(path)
        planned = make_plan(Recipe(model=path, **options), checkpoint)
        key = name, planned.checkpoint.layers
        if key not in models:
            models[key] = planned.checkpoint.load_model()
        parts = checkpoint.family.parts(models[key], planned.description)
        return Tiny(planned, models[key], parts)

    return make


@pytest.fixture(scope="session")
def processor() -> Callable[[Path], Any]:
    """The checkpoint's own processor; its video processor, which needs torchvision, is ours.

    The stand-in takes the pixels and times of a clip as they are, so that the rest of the class
    writes its own text around them.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    from edgevlm.models.find import find
    from edgevlm.models.processor import missing_library, processor_class

    @cache
    def read(path: Path) -> dict[str, Any]:
        if library := missing_library(find(str(path))):
            pytest.skip(f"its image processor needs {library}")
        template = path / "chat_template.jinja"
        document = json.loads((path / "processor_config.json").read_text())
        del document["processor_class"]
        return document | {
            "image_processor": AutoImageProcessor.from_pretrained(path),
            "tokenizer": AutoTokenizer.from_pretrained(path),
            "chat_template": template.read_text() if template.exists() else None,
        }

    def make(path: Path, clip: np.ndarray | None = None, metadata: Any = None) -> Any:
        config = transformers.AutoConfig.from_pretrained(path)
        original = processor_class(find(str(path)))

        class Processor(original):
            def check_argument_for_proper_class(self, argument_name, argument):
                return type(argument)

            def _process_videos(self, videos, **kwargs):
                key = "pixel_values" if config.model_type == "smolvlm" else "pixel_values_videos"
                data = {key: torch.from_numpy(clip)[None], "video_metadata": [metadata]}
                return data, [self.replace_video_token(data, 0)]

        Processor.__name__ = original.__name__
        stand_in = SimpleNamespace(  # of clips and sounds
            num_frames=None, fps=None, slice_mode=False, downsample_mode="16x"
        )
        return Processor(**dict.fromkeys(original.get_attributes(), stand_in) | read(path))

    return make


@pytest.fixture(scope="session")
def prompt() -> type[Prompt]:
    return Prompt


@pytest.fixture(scope="session")
def photo() -> Callable[..., Image.Image]:
    """A photograph of the package, resized; `turn` makes another one of it."""

    def load(width: int, height: int, name: str = "flower") -> Image.Image:
        path = ROOT / "edgevlm" / "photos" / f"{name}.jpg"
        return Image.open(path).convert("RGB").resize((width, height))

    return load


@pytest.fixture(scope="session")
def decoder_difference() -> Callable[[Tiny], float]:
    """Worst rel_error of the last hidden state: chunks and single tokens against one full call."""
    from edgevlm.graphs.layers import LayerCall
    from edgevlm.parity.compare import difference
    from edgevlm.runtimes.loops.sequence import (
        causal_mask,
        layer_rows,
        rotary_tables,
        text_positions,
    )

    def measure(made: Tiny) -> float:
        length, decoder, states = 24, made.parts.decoder, made.plan.host.states
        calls = [(0, 8), (8, 8), (16, 5), (21, 1), (22, 1), (23, 1)]
        generator = torch.Generator().manual_seed(0)  # whatever tests ran before
        rows = torch.randn(length, made.plan.host.row_columns, generator=generator)
        hidden = rows[None, :, : made.plan.host.embedding.columns]
        cache = [
            [torch.zeros(shape) for shape in state.with_rows(length).shapes]
            for state in states.each
        ]
        groups = None
        if made.plan.host.mask != "causal":  # the rows of the second call see each other
            groups = np.full(length, -1, np.int32)
            groups[8:16] = 0
        outputs = []
        for first, count in calls:
            positions = text_positions(made.plan, first, count)
            tables = [
                [torch.from_numpy(x)[None] for x in rotary_tables(made.plan, positions, rope)]
                for rope in range(len(made.plan.host.ropes))
            ]
            together = None if groups is None else groups[first : first + count]
            mask = torch.from_numpy(causal_mask(first, count, length, together))
            span = slice(first, first + count)
            x, at = hidden[:, span], torch.tensor([first], dtype=torch.int32)
            call = LayerCall(dict(enumerate(tables)), mask, at, embeds=x)
            for index, layer in enumerate(decoder.layers):
                source = states.of(index).source
                past = cache[index if source is None else source]
                own = layer_rows(made.plan, (index, index + 1), rows[span].numpy()).values()
                row = next((torch.from_numpy(row)[None] for row in own), None)
                x, *new = layer.step(x, replace(call, row=row), past)
                past[:] = new or past
            outputs.append(decoder.norm(x))
        positions = text_positions(made.plan, 0, length)
        whole = decoder.own(rows.numpy(), positions, groups=groups).last_hidden_state
        return difference(torch.cat(outputs, 1), whole)[0]

    return measure


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield
