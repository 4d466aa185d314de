"""The encoder loop: image or clip -> embedding, or scores of classes; texts -> embeddings.

image -> view -> `vision` blocks -> embedding [E], or logits of classes
clip -> frames -> all in one view, as above; or a view each -> mean of embeddings at length 1
text -> tokens, truncated or padded to S -> rows of the table -> `text` blocks -> embedding [E]
logit = scale · cosine(image, text) + bias; a score by softmax or sigmoid
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from edgevlm.bundle.files import Bundle
from edgevlm.bundle.kinds.encoder import EncoderHost, EncoderPlan
from edgevlm.errors import InputError
from edgevlm.runtimes import values
from edgevlm.runtimes.arrays import Array, finite
from edgevlm.runtimes.engine import Blocks
from edgevlm.runtimes.loops import images
from edgevlm.runtimes.loops.answers import Embedded, Label, line
from edgevlm.runtimes.loops.buffers import chain
from edgevlm.runtimes.loops.contract import RunRequest
from edgevlm.runtimes.loops.images.pictures import Picture
from edgevlm.runtimes.loops.images.sources import Data, Source
from edgevlm.runtimes.loops.tables import Words
from edgevlm.runtimes.residency.memory import peak_rss_bytes, return_freed

CACHED_TEXTS = 256  # texts whose embeddings are cached


@dataclass(frozen=True)
class Arrays:
    """Arrays that the loop writes and reads between runs.

    Attributes:
        pixels: The view.
        embedding: Of the image [1, E], or its logits.
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
        return Arrays(image["pixel_values"], image_results[plan.host.result])
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

    takes: ClassVar[tuple[str, ...]] = ("image", "video", "labels")
    needs: ClassVar[tuple[str, ...]] = ("image", "video")
    usage: ClassVar[str] = (
        "the bundle gives embeddings of images or clips; give --image FILE or --video FILE, and"
        " --labels A,B,… to compare it with texts"
    )

    def __init__(self, bundle: Bundle, blocks: Blocks) -> None:
        self.bundle, self.blocks, self.plan = bundle, blocks, bundle.plan
        text = self.plan.host.text
        self._words = None if text is None else Words(bundle, text)
        return_freed()  # memory of parsing, which new arrays would reuse and count twice
        images.prepare(clips=self.plan.host.image.frames > 1)
        started = time.perf_counter()
        self.arrays = bind(self.plan, blocks)
        blocks.open()
        self.load_ms = (time.perf_counter() - started) * 1e3
        self._known: dict[str, Array] = {}  # embeddings of texts

    def forget(self) -> None:
        """Forget the texts."""
        self._known.clear()

    def answers(self, request: RunRequest) -> Iterator[Embedded]:
        """The embedding of each image or the clip, and all labels; see `contract.Loop`."""
        if request.video is not None or self.plan.host.image.frames > 1:
            yield self.classify(request.images, request.labels, video=request.video)
            return
        for path in request.images:
            if len(request.images) > 1:
                request.on_text(f"{line(str(path))}:\n")
            yield self.classify(path, request.labels)

    def classify(
        self,
        picture: Picture,
        labels: Sequence[str] = (),
        video: Source | None = None,
    ) -> Embedded:
        """The embedding of an image or clip, and the score of each label or class.

        Args:
            picture: An image; of a bundle with frames, the frames of a clip in order.
            labels: Texts, of a bundle with a text encoder.
            video: A clip's file instead of pictures, of a bundle with frames.

        Raises:
            InputError: If a picture cannot be read, there are more or fewer than the bundle takes,
                or there are labels and the bundle has no text encoder.
        """
        labels = values.texts("labels", labels)
        if labels and self.plan.host.classes:
            raise InputError("the bundle gives the scores of its own classes; leave out the labels")
        decoded = self._decoded(picture, video)
        started = time.perf_counter()
        result = self.embed(decoded)
        encoded = time.perf_counter()
        texts = [self.embed_text(label) for label in labels]
        compared = time.perf_counter()
        return Embedded(
            image=_path(picture),
            video=_path(video),
            embedding=() if self.plan.host.classes else tuple(map(float, result)),
            labels=self._labels(result, labels, texts),
            load_ms=self.load_ms,
            vision_ms=(encoded - started) * 1e3,
            text_ms=(compared - encoded) * 1e3,
            peak_rss_bytes=peak_rss_bytes(),
            engine=self.blocks.engine.name,
            loads=self.blocks.loads,
        )

    def embed(self, pictures: list[Image.Image]) -> Array:
        """The embedding of an image or of the frames of a clip, f32 [E]; of a classifier logits.

        A clip of several views has the mean of their embeddings at length 1.

        Args:
            pictures: As many as the bundle takes; the list is emptied before a block is loaded.

        Raises:
            BundleError: If a number of it is infinite or none.
            InputError: If there are more or fewer.
        """
        pixels = images.views(pictures, self.plan.host.image)
        pictures.clear()
        self.blocks.settle()
        self.blocks.expect("vision", len(pixels))
        each = []
        for view in pixels:
            self.arrays.pixels[0] = view
            each.append(self._run("vision", self.arrays.embedding))
        return each[0] if len(each) == 1 else mean_unit(each)

    def _decoded(self, picture: Picture, video: Source | None) -> list[Image.Image]:
        """The picture, or the frames of a clip at the size of their views.

        Raises:
            InputError: If one cannot be read, or the bundle takes others.
        """
        image = self.plan.host.image
        if image.frames == 1:
            if video is not None:
                raise InputError("the bundle takes still images; export it with --frames for video")
            return [images.load(picture, self.room())]
        if video is not None:
            return images.load_clip(
                video,
                image.frames,
                lambda frame: images.shrink(frame, image),
                self.room(),
                images.picker_of(image),
            )[0]
        listed = isinstance(picture, Sequence) and not isinstance(picture, str | Data)
        frames: Sequence[Any] = picture if listed else [picture]  # type: ignore[assignment]
        if len(frames) != image.frames:
            raise InputError(
                f"the bundle takes {image.frames} frames per clip, got {len(frames)}; or give"
                " --video FILE"
            )
        return [images.shrink(images.load(each, self.room()), image) for each in frames]

    def _labels(
        self, result: Array, labels: Sequence[str], texts: Sequence[Array]
    ) -> tuple[Label, ...]:
        """Labels with their scores; of a classifier its classes, best first."""
        classes = self.plan.host.classes
        if classes:
            odds = softmax(result.astype(np.float64))
            order = np.argsort(-odds, kind="stable")
            return tuple(Label(classes[i], float(odds[i])) for i in order)
        each = self.scores(result, texts) if texts else ()
        return tuple(Label(*pair) for pair in zip(labels, map(float, each), strict=True))

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
        self.blocks.expect("text", 1)
        return self._run("text", self.arrays.text)

    def _run(self, stage: str, result: Array) -> Array:
        """Run the blocks of a stage once; returns a copy of the last one's output.

        Raises:
            BundleError: If a number of it is infinite or none.
        """
        for block in self.plan.stage(stage):
            self.blocks.run(block.name, "encode")
        return np.array(finite(stage, result)[0])


def logits(host: EncoderHost, embedding: Array, texts: Sequence[Array]) -> Array:
    """How alike an image's embedding [E] and those of texts are: f64 [n]."""
    products = np.asarray([_unit(text) @ _unit(embedding) for text in texts])
    return np.asarray(host.scale * products + host.bias)


def scores(host: EncoderHost, alike: Array) -> Array:
    """The score of each text from its logit: f32 [n]."""
    if host.scores == "sigmoid":
        return np.asarray(np.exp(-np.logaddexp(0, -alike)), np.float32)
    return np.asarray(softmax(alike), np.float32)


def softmax(logits: Array) -> Array:
    """Shares of all: f64 [n]."""
    odds = np.exp(logits - logits.max())
    return np.asarray(odds / odds.sum())


def mean_unit(embeddings: Sequence[Array]) -> Array:
    """The mean of embeddings at length 1, f32 [E]."""
    return np.asarray(np.mean([_unit(each) for each in embeddings], axis=0), np.float32)


def _path(source: object) -> str | None:
    """The name of a file as it was given; None for what is no path."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None


def _unit(embedding: Array) -> Array:
    """The same direction at length 1; zeros stay."""
    wide = embedding.astype(np.float64)
    return wide / (np.linalg.norm(wide) or 1.0)


# The contract of a loop's module, see `runtimes.loading`.
open_loop, bind_arrays = EncoderLoop, bind
