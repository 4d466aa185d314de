"""Kind `encoder`: an image or clip in, an embedding or scores of classes out; texts to compare.

    vision  encode  pixel_values of the image, or of frames of a clip -> its embedding [1, E]
                    or, of a classifier, its logits [1, E], one a class
    text    encode  rows of the text's tokens -> its embedding [1, E]

A checkpoint without a text encoder has the first stage alone. Shapes: S tokens of a text, C
channels of a token, E numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgevlm.bundle import checks
from edgevlm.bundle.checks import expect
from edgevlm.bundle.documents import shown
from edgevlm.bundle.functions import Block, Signature, Stage, Tensor
from edgevlm.bundle.host import Embedding, EncoderShape, ImageSpec
from edgevlm.bundle.kinds.shared.text import TextHost
from edgevlm.bundle.kinds.shared.vision import encode, passed_on
from edgevlm.bundle.plan import Plan

STAGES = (
    Stage("vision", True, "image encoder", "blue"),
    Stage("text", True, "text encoder", "orange"),
)
LOOP, ANSWER = "encoder", "embedding"
SCORES = ("softmax", "sigmoid")
MOST_TOKENS = 2**16
# Bounds of the factor of a product and of what is added to it; the published models have 100 to 120
# and -10 to -17.
MOST_LOGIT = 1e6


@dataclass(frozen=True)
class EncoderHost:
    """Constants that the program around the graphs needs.

    A clip of several views has as its embedding the mean of those of its views at unit length
    (CLIP4Clip, arXiv 2104.08860, section 3.3.1). The likeness of an image and a text is the product
    of their embeddings at unit length, times `scale`, plus `bias`; over several texts it becomes
    shares by `scores`.

    Attributes:
        image: Preprocessing.
        encoder: Sizes inside the image encoder.
        size: E, numbers of an embedding, or classes.
        text: The text encoder; None where the checkpoint has none.
        scale: Factor of a product.
        bias: What is added to it.
        scores: `softmax` over the texts or classes, or `sigmoid` of each.
        classes: Names of the classes whose logits the image encoder gives; empty where it gives an
            embedding.
    """

    image: ImageSpec
    encoder: EncoderShape
    size: int
    text: TextHost | None
    scale: float
    bias: float
    scores: str
    classes: tuple[str, ...] = ()

    @property
    def result(self) -> str:
        """Name of what the image encoder gives."""
        return "logits" if self.classes else "embedding"

    @property
    def tables(self) -> Mapping[str, Embedding]:
        """The text encoder's table."""
        return {"embedding": self.text.embedding} if self.text else {}

    def placed(self, files: Mapping[str, str]) -> EncoderHost:
        """The same host with the file of its table."""
        if self.text is None:
            return self
        table = replace(self.text.embedding, file=files["embedding"])
        return replace(self, text=replace(self.text, embedding=table))


HOST = EncoderHost
EncoderPlan = Plan[EncoderHost]


def spans(host: EncoderHost) -> dict[str, int]:
    """How far the spans of each stage's blocks reach."""
    reach = {"vision": host.encoder.parts}
    return reach | {"text": host.text.parts} if host.text else reach


def functions(host: EncoderHost, block: Block) -> tuple[str, ...]:
    """Names of the functions that a block has."""
    return ("encode",)


def signature(host: EncoderHost, block: Block, function: str) -> Signature:
    """What goes in and out of `encode` of a block."""
    if block.stage == "vision":
        result = Tensor(host.result, "f32", (1, host.size))
        return encode(host.image, host.encoder, block.span, result)
    result = Tensor("embedding", "f32", (1, host.size))
    assert host.text is not None
    hidden = Tensor("hidden", "f32", (1, host.text.tokens, host.text.embedding.columns))
    if block.span[1] < host.text.parts:
        outputs, chained = passed_on([hidden])
        return Signature((hidden,), tuple(outputs), (), tuple(chained))
    end = (Tensor("end", "i32", (1,)),) if host.text.reads_end else ()
    return Signature((hidden, *end), (result,))


def passes(plan: EncoderPlan) -> dict[str, tuple[tuple[str, str], ...]]:
    """The orders in which a loop runs functions: (block, function)."""
    return {
        stage: tuple((block.name, "encode") for block in plan.stage(stage))
        for stage in spans(plan.host)
    }


def turn_bytes(host: EncoderHost) -> int:
    """Bytes that an image allocates beside its blocks: pixels twice."""
    return 2 * host.image.pixel_bytes


def outline(host: EncoderHost) -> tuple[object, ...]:
    """The numbers that parity feeds the functions by, and those that make scores.

    The factor is an exponential, whose last digit differs between C libraries.
    """
    text = host.text and replace(host.text, embedding=replace(host.text.embedding, file=""))
    scores = (float(np.float32(host.scale)), float(np.float32(host.bias)), host.scores)
    return host.image, host.encoder, host.size, text, scores, host.classes


def facts(plan: EncoderPlan) -> dict[str, Any]:
    """What `plan`, `export` and `inspect` say of such a bundle, by JSON key."""
    host = plan.host
    sizes = {"classes": host.size} if host.classes else {"embedding_dimensions": host.size}
    return sizes | ({"frames": host.image.frames} if host.image.frames > 1 else {})


def check(plan: EncoderPlan) -> None:
    """Refuse constants that do not fit each other or their files.

    Raises:
        BundleError: One line that names the field.
    """
    host, text = plan.host, plan.host.text
    checks.numbers("host", {"size": host.size})
    checks.image(host.image)
    tiles = host.image.rows * host.image.columns
    expect(tiles == 1, f"host.image has {tiles} tiles, expected one view of a picture or frame")
    checks.encoder(host.encoder)
    expect(not host.encoder.signals, "host.encoder.signals: no method takes them here")
    checks.choice("host.scores", host.scores, SCORES)
    within = 1 / MOST_LOGIT <= host.scale <= MOST_LOGIT
    expect(within, f"host.scale is {host.scale:g}, expected {1 / MOST_LOGIT:g} to {MOST_LOGIT:g}")
    within = abs(host.bias) <= MOST_LOGIT
    expect(within, f"host.bias is {host.bias:g}, expected at most {MOST_LOGIT:g} either way")
    _check_classes(host)
    for block in plan.blocks:
        expect(not block.shares, f"{block.name}.shares is set, no table is shared here")
    if text is None:
        return
    checks.numbers("host.text", {"tokens": text.tokens, "layers": text.layers})
    expect(text.tokens <= MOST_TOKENS, f"host.text.tokens is {text.tokens}")
    expect(text.layers <= checks.MOST_LAYERS, f"host.text.layers is {text.layers}")
    checks.embedding(text.embedding, plan.files)
    expect(not text.reads_end or text.end_id is not None, "host.text.end_id is null, and read")
    for name, value in (("pad_id", text.pad_id), ("end_id", text.end_id)):
        inside = value is None or 0 <= value < text.embedding.rows
        expect(inside, f"host.text.{name} is {shown(value)}, outside the embedding table")


def _check_classes(host: EncoderHost) -> None:
    """Refuse names of classes that are not one for each logit of one call."""
    if not host.classes:
        return
    count = len(host.classes)
    expect(count == host.size, f"host.classes has {count} names, expected {host.size}")
    expect(host.text is None, "host.text is set, a classifier compares with no texts")
    expect(host.image.views == 1, f"host.image has {host.image.views} views, a classifier has one")
    expect(host.scores == "softmax", "host.scores is 'sigmoid', of classes 'softmax' is expected")
