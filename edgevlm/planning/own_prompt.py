"""A prompt by the checkpoint's own processor, beside the same prompt by a layout.

The processor renders its template, writes the tokens of an image between the words, and tokenizes
the whole; it is asked for the grid of the recipe, with a picture of that grid's shape. Both sides
must have the same ids where no visual token stands, and the processor as many visual tokens as the
family says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from edgevlm.bundle.host import Layout, LayoutItem
from edgevlm.errors import ModelError
from edgevlm.libraries import first_line, silent
from edgevlm.models import templates
from edgevlm.models.family import TABLE_ROW, Description
from edgevlm.models.processor import chat_template, takes_clips
from edgevlm.models.speller import Speller
from edgevlm.runtimes.loops.spelling import Slot, Visual, spell

# White space at both ends, capitals, digits, marks, letters with accents and of another script.
ODD_QUESTION = "  What's in THIS picture -- 3 flowers, or a na\u00efve 花 (1,024 px)?\n "
_SLOT = -1


@dataclass(frozen=True)
class PromptComparison:
    """Prompts without an image, with one and with two, by the processor and by the layout.

    Attributes:
        equal: Share of the prompts whose ids are equal, visual tokens left out. Of a clip there
            are not two; of one that the processor does not take (Idefics3) only the prompt without
            is compared.
        image_tokens: Visual tokens that the processor writes for one image or clip.
        expected_tokens: Those that the family says.
        difference: The first difference in one line; empty where there is none.
    """

    equal: float
    image_tokens: int
    expected_tokens: int
    difference: str


def compare_prompts(
    description: Description,
    processor: Any,
    options: dict[str, Any],
    speller: Speller,
    layout: Layout,
    tokenizer: Tokenizer,
    picture: Image.Image,
) -> PromptComparison:
    """Ask an odd question without an image, with one, and with two.

    Args:
        description: The family's numbers.
        processor: transformers' processor.
        options: Under which it cuts the grid of the recipe.
        speller: The checkpoint's tokenizer.
        layout: The layout to compare.
        tokenizer: The bundle's tokenizer.
        picture: Of the grid's shape; a clip has numbers of its own.
    """
    expected, clip = (
        description.processor_tokens or _count(description.full_image),
        _clip(description),
    )
    prompts = []
    if description.chats:
        prompts.append((0, speller.ids(_text(description, processor, images=0))))
    count = expected
    if description.image.frames == 1 or takes_clips(processor):
        ids = processor_ids(description, processor, options, speller, picture, clip)
        prompts.append((1, ids))
        count = ids.count(speller.slot)
    if description.image.frames == 1 and not layout.one_image:
        ids = processor_ids(description, processor, options, speller, picture, clip, images=2)
        prompts.append((2, ids))
    pairs, gone = [], _gone(description, layout, speller)
    for images, ids in prompts:
        items, spelled = layout.prompt if images else layout.text, list[int]()
        for part in spell(items, layout, tokenizer, ODD_QUESTION, [clip] * images):
            spelled += [_SLOT] if isinstance(part, Slot) else part
        pairs.append((_squeezed(spelled, speller, gone), _squeezed(ids, speller, gone)))
    difference = next((_line(speller, *pair) for pair in pairs if pair[0] != pair[1]), "")
    if not difference and count != expected:
        difference = (
            f"the checkpoint's processor writes {count} tokens of '{speller.placeholder}' for an"
            f" image of this grid, its model gives {expected}; mend processor_config.json"
        )
    equal = sum(ours == theirs for ours, theirs in pairs) / len(pairs)
    return PromptComparison(equal, count, expected, difference)


def processor_ids(
    description: Description,
    processor: Any,
    options: dict[str, Any],
    speller: Speller,
    picture: Image.Image,
    clip: Visual,
    images: int = 1,
) -> list[int]:
    """Ids of a first turn with so many images, or with a clip, by the processor alone."""
    image, text = description.image, _text(description, processor, images)
    if image.frames == 1:
        for name, value in options.items():  # LLaVA's counts tokens by its attribute
            setattr(processor.image_processor, name, value)
        return _ids(processor, speller, text, images=[picture] * images, **options)
    frames = torch.zeros(image.frames, 3, image.height, image.width)
    times = SimpleNamespace(fps=1.0, timestamps=list(clip.times), duration=clip.duration)
    processor.clip = {
        "pixel_values": frames[None],
        "pixel_values_videos": frames[None],
        "video_metadata": [times],
    }
    return _ids(processor, speller, text, videos=[list(frames)])


def _ids(processor: Any, speller: Speller, text: str, **inputs: Any) -> list[int]:
    written = speller.written(text)
    try:
        with silent():
            made = processor(text=text, add_special_tokens=not written, **inputs)
        (ids,) = made["input_ids"]
    except Exception as cause:  # values of preprocessor_config.json that it reads only now
        raise ModelError(
            f"the checkpoint's own processor refuses a picture: {first_line(cause).rstrip('.')};"
            " correct preprocessor_config.json"
        ) from cause
    return list(map(int, ids))


def _text(description: Description, processor: Any, images: int) -> str:
    """What the checkpoint's own template writes."""
    template = chat_template(processor)
    if template is None:
        return description.placeholder * images + ODD_QUESTION
    kind = "video" if description.image.frames > 1 else "image"
    content = [{"type": kind}] * images
    content.append({"type": "text", "text": ODD_QUESTION})
    # A processor does not ask its tokenizer for one; for a clip it may have one of its own.
    own = processor.chat_template or (images and description.chat_template)
    named = None if own else template
    with templates.limited():
        return str(
            processor.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=named,
                add_generation_prompt=True,
            )
        )


def _clip(description: Description) -> Visual:
    """Times of a clip of a bit over two minutes."""
    times = tuple(41.5 * index for index in range(description.image.frames))
    return Visual(np.zeros((0, 0), np.float32), np.zeros(0, np.int32), times, 125.9)


def _count(image: Sequence[str | LayoutItem]) -> int:
    """Visual tokens and extra rows of an image, each of which is a token to a processor."""
    items = [item for item in image if isinstance(item, LayoutItem)]
    visual = sum(item.stop - item.start for item in items if item.kind == "visual")
    return visual + sum(item.kind == TABLE_ROW for item in items)


def _gone(description: Description, layout: Layout, speller: Speller) -> set[int]:
    """Ids of an image that a layout has not because a method takes tokens out: ends of rows."""
    full, reduced = (
        {item for item in image if isinstance(item, str)}
        for image in (description.full_image, description.reduced_image)
    )
    kept = {i for item in layout.image for i in item.ids}
    return {i for text in full - reduced for i, _, _ in speller.tokens(text)} - kept


def _squeezed(ids: Sequence[int], speller: Speller, gone: set[int]) -> list[int]:
    """Ids with one slot for neighbouring visual tokens, extra rows and what is gone."""
    slots = {_SLOT, speller.slot, *gone}
    marked = [_SLOT if i in slots or i >= speller.vocabulary else i for i in ids]
    return [i for key, run in groupby(marked) for i in ([key] if key == _SLOT else run)]


def _line(speller: Speller, ours: Sequence[int], own: Sequence[int]) -> str:
    pairs = enumerate(zip(ours, own, strict=False))
    at = next((index for index, pair in pairs if len(set(pair)) > 1), min(len(ours), len(own)))
    names = [
        "nothing"
        if at >= len(ids)
        else f"'{speller.placeholder}'"
        if ids[at] == _SLOT
        else repr(speller.own.convert_ids_to_tokens(ids[at]))
        for ids in (ours, own)
    ]
    return (
        f"the prompt differs from the checkpoint's processor: token {at} is {names[0]}, and"
        f" {names[1]} of its own"
    )
