"""The encoder loop: image -> embedding; texts -> embeddings, and the score of each.

image -> view -> `vision` blocks -> embedding [E]
text -> tokens, truncated or padded to S -> rows of the table -> `text` blocks -> embedding [E]
logit = scale · cosine(image, text) + bias; a score by softmax or sigmoid
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.kinds.encoder import EncoderHost, EncoderPlan
from edgevlm.errors import BundleError, InputError
from edgevlm.runtimes import values
from edgevlm.runtimes.arrays import Array
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.buffers import chain
from edgevlm.runtimes.loops.contract import RunRequest
from edgevlm.runtimes.loops.images.pictures import Picture
from edgevlm.runtimes.loops.tables import Words
from edgevlm.runtimes.residency.memory import peak_rss_bytes, return_freed
from edgevlm.units import megabytes

CACHED_TEXTS = 256  # texts whose embeddings are cached
SHOWN = 4  # numbers of an embedding in a line


@dataclass(frozen=True)
class Label:
    """A text with its score: its share among all texts (softmax), or alone (sigmoid)."""

    label: str
    score: float


@dataclass(frozen=True)
class Embedded:
    """The embedding of one image, and the score of each label; times in ms.

    `image` is the file as it was named, None for a picture that is none. `text_ms` is the time of
    the labels that were not cached.
    """

    image: str | None
    embedding: tuple[float, ...]
    labels: tuple[Label, ...]
    load_ms: float
    vision_ms: float
    text_ms: float
    peak_rss_bytes: int
    engine: str
    loads: int

    @property
    def nearest(self) -> Label | None:
        """The label of the highest score."""
        return max(self.labels, key=lambda label: label.score, default=None)

    @property
    def shown(self) -> str:
        """The nearest label and all scores; without labels, size and beginning of the embedding."""
        if self.nearest is not None:
            names = [_line(label.label) for label in self.labels]
            width = max(map(len, names))
            pairs = zip(names, self.labels, strict=True)
            each = (f"  {name:{width}}  {label.score:.4f}" for name, label in pairs)
            return "\n".join([_line(self.nearest.label), *each])
        first = ", ".join(f"{number:.4f}" for number in self.embedding[:SHOWN])
        return f"{len(self.embedding)} numbers: {first}, …"

    @property
    def summary(self) -> str:
        """The figures, one line."""
        return (
            f"image {self.vision_ms:.1f} ms;"
            + (f" texts {self.text_ms:.1f} ms;" if self.labels else "")
            + f" {self.loads} loads; peak {megabytes(self.peak_rss_bytes)}; {self.engine}"
        )


@dataclass(frozen=True)
class Arrays:
    """Arrays that the loop writes and reads between runs.

    Attributes:
        pixels: The view.
        embedding: Of the image [1, E].
        rows: Rows of a text's tokens [1, S, C]; None without a text encoder.
        end: Index of the token at which the text's embedding is read [1]; None for the last.
        text: Embedding of the text [1, E]; None without a text encoder.
    """

    pixels: Array
    embedding: Array
    rows: Array | None = None
    end: Array | None = None
    text: Array | None = None


def bind(plan: EncoderPlan, blocks: Blocks) -> Arrays:
    """Allocate the arrays of a plan and bind them."""
    image, image_results, _ = chain(plan.stage("vision"), "encode", blocks)
    if plan.host.text is None:
        return Arrays(image["pixel_values"], image_results["embedding"])
    fed, text_results, _ = chain(plan.stage("text"), "encode", blocks)
    return Arrays(
        image["pixel_values"],
        image_results["embedding"],
        fed["hidden"],
        fed.get("end"),
        text_results["embedding"],
    )


class EncoderLoop:
    """Embeddings by one bundle. Not safe for two threads."""

    takes: ClassVar[tuple[str, ...]] = ("image", "labels")
    needs: ClassVar[tuple[str, ...]] = ("image",)
    usage: ClassVar[str] = (
        "the bundle gives embeddings of images; give --image FILE, and --labels A,B,… to compare it"
        " with texts"
    )

    def __init__(self, bundle: Bundle, blocks: Blocks) -> None:
        self.bundle, self.blocks, self.plan = bundle, blocks, bundle.plan
        text = self.plan.host.text
        self._words = None if text is None else Words(bundle, text)
        return_freed()  # memory of parsing, which new arrays would reuse and count twice
        images.prepare(clips=False)
        started = time.perf_counter()
        self.arrays = bind(self.plan, blocks)
        blocks.open()
        self.load_ms = (time.perf_counter() - started) * 1e3
        self._known: dict[str, Array] = {}  # embeddings of texts

    def forget(self) -> None:
        """Forget the texts."""
        self._known.clear()

    def answers(self, request: RunRequest) -> Iterator[Embedded]:
        """The embedding of each image, compared with all labels; see `contract.Loop`."""
        for path in request.images:
            if len(request.images) > 1:
                request.on_text(f"{_line(str(path))}:\n")
            yield self.classify(path, request.labels)

    def classify(self, picture: Picture, labels: Sequence[str] = ()) -> Embedded:
        """The embedding of an image, and the score of each label.

        Raises:
            InputError: If the picture cannot be read, or there are labels and the bundle has no
                text encoder.
        """
        labels = values.texts("labels", labels)
        name = os.fspath(picture) if isinstance(picture, str | os.PathLike) else None
        decoded = [images.load(picture, self.room())]
        started = time.perf_counter()
        embedding = self.embed(decoded.pop())  # no reference stays here
        encoded = time.perf_counter()
        texts = [self.embed_text(label) for label in labels]
        compared = time.perf_counter()
        each = self.scores(embedding, texts) if texts else ()
        return Embedded(
            image=name,
            embedding=tuple(map(float, embedding)),
            labels=tuple(Label(*pair) for pair in zip(labels, map(float, each), strict=True)),
            load_ms=self.load_ms,
            vision_ms=(encoded - started) * 1e3,
            text_ms=(compared - encoded) * 1e3,
            peak_rss_bytes=peak_rss_bytes(),
            engine=self.blocks.engine.name,
            loads=self.blocks.loads,
        )

    def embed(self, picture: Picture) -> Array:
        """The embedding of an image, f32 [E], not normalized.

        Raises:
            BundleError: If a number of it is infinite or none.
            InputError: If the picture cannot be read.
        """
        self.arrays.pixels[:] = images.views([picture], self.plan.host.image)
        del picture  # before a block is loaded
        self.blocks.settle()
        return self._run("vision", self.arrays.embedding)

    def room(self) -> images.Room:
        """Memory for decoding a picture."""
        image, shortage = self.plan.host.image, self.blocks.shortage
        return images.Room(None if self.blocks.keeps_all else shortage, image.width, image.height)

    def embed_text(self, text: str) -> Array:
        """The embedding of a text, f32 [E]; the last few are cached.

        Raises:
            InputError: If the bundle has no text encoder.
        """
        text = values.text("the text", text)
        if text not in self._known:
            self._known[text] = self._encode_text(text)
        embedding = self._known[text] = self._known.pop(
            text
        )  # least recently used is evicted first
        if len(self._known) > CACHED_TEXTS:
            self._known.pop(next(iter(self._known)))
        return embedding

    def scores(self, embedding: Array, texts: Sequence[Array]) -> Array:
        """The score of each text embedding for an image's: f32 [n]."""
        return scores(self.plan.host, logits(self.plan.host, embedding, texts))

    def token_ids(self, text: str) -> list[int]:
        """The S tokens of a text.

        Raises:
            InputError: If the bundle has no text encoder.
        """
        if self._words is None:
            raise InputError("the bundle has no text encoder; leave out the labels")
        return self._words.ids(text)

    def _encode_text(self, text: str) -> Array:
        ids = self.token_ids(text)
        assert self._words is not None and self.arrays.rows is not None
        assert self.arrays.text is not None
        self.arrays.rows[0] = self._words.table[ids]
        if self.arrays.end is not None:
            self.arrays.end[0] = self._words.end(ids)
        return self._run("text", self.arrays.text)

    def _run(self, stage: str, result: Array) -> Array:
        """Run the blocks of a stage once; returns a copy of the last one's output.

        Raises:
            BundleError: If a number of it is infinite or none.
        """
        self.blocks.expect(stage, 1)
        for block in self.plan.stage(stage):
            self.blocks.run(block.name, "encode")
        if not np.isfinite(result).all():
            raise BundleError(
                f"stage '{stage}' gives numbers that are not finite: a weight or a constant of the"
                " bundle is damaged, or float16 overflows; see edgevlm verify"
            )
        return np.array(result[0])


def logits(host: EncoderHost, embedding: Array, texts: Sequence[Array]) -> Array:
    """How alike an image's embedding [E] and those of texts are: f64 [n]."""
    products = np.asarray([_unit(text) @ _unit(embedding) for text in texts])
    return np.asarray(host.scale * products + host.bias)


def scores(host: EncoderHost, alike: Array) -> Array:
    """The score of each text from its logit: f32 [n]."""
    if host.scores == "sigmoid":
        return np.asarray(np.exp(-np.logaddexp(0, -alike)), np.float32)
    odds = np.exp(alike - alike.max())
    return np.asarray(odds / odds.sum(), np.float32)


def _line(text: str) -> str:
    """A text on one line, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _unit(embedding: Array) -> Array:
    """The same direction at length 1; zeros stay."""
    wide = embedding.astype(np.float64)
    return wide / (np.linalg.norm(wide) or 1.0)


# The contract of a loop's module, see `runtimes.loading`.
open_loop, bind_arrays = EncoderLoop, bind
