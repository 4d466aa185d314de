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
from edgevlm.planning.prompt import render_prompts
from edgevlm.runtimes.loops.spelling import Slot, Visual, first_turn, spell

# White space at both ends, capitals, digits, marks, letters with accents and of another script.
ODD_QUESTION = "  What's in THIS picture -- 3 flowers, or a na\u00efve 花 (1,024 px)?\n "
ODD_SYSTEM = "\n Say it in ONE line; caf\u00e9s (No. 2) 花 count twice -- \n"
# Texts (T) and images (I) in an order of their own.
MIXTURE = "TITTI"
_SLOT = -1


@dataclass(frozen=True)
class PromptComparison:
    """Prompts of texts and images by the processor and by the layout.

    They are one without an image, with one and with two; with a system text, and of texts and two
    images in another order, where the layout has these.

    Attributes:
        equal: Share of the prompts whose ids are equal, visual tokens left out. Of a clip there
            are not two; of one that the processor does not take (Idefics3) only prompts without
            are compared.
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
    """Ask odd questions, see `PromptComparison`.

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
    pairs, count, gone = [], expected, _gone(description, layout, speller)
    for order, system in _asked(description, processor, layout):
        text, images = _text(description, processor, order, system), order.count("I")
        if images:
            ids = processor_ids(
                description, processor, options, speller, picture, clip, text, images
            )
        else:
            ids = speller.ids(text)
        if order == "IT" and not system:
            count = ids.count(speller.slot)
        parts = [None if kind == "I" else ODD_QUESTION for kind in order]
        items, spelled = first_turn(layout, parts, ODD_SYSTEM if system else None), list[int]()
        for part in spell(items, layout, tokenizer, "", [clip] * images):
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


def _asked(description: Description, processor: Any, layout: Layout) -> list[tuple[str, Any]]:
    """Orders of texts (T) and images (I), each with the content of a system message or None."""
    clip, system = description.image.frames > 1, None
    if layout.prompt_system and (texts := render_prompts(description, processor).system):
        system = texts.form(ODD_SYSTEM)
    asked: list[tuple[str, Any]] = [("T", None)] if description.chats else []
    takes = not clip or takes_clips(processor)
    if takes:
        asked.append(("IT", None))
    if not clip and not layout.one_image:
        asked.append(("IIT", None))
    if system:
        asked.append(("T", system))
    if takes and (system or layout.mixes):
        asked.append((MIXTURE if layout.mixes else "IT", system))
    return asked


def processor_ids(
    description: Description,
    processor: Any,
    options: dict[str, Any],
    speller: Speller,
    picture: Image.Image,
    clip: Visual,
    text: str,
    images: int,
) -> list[int]:
    """Ids of a first turn's text with so many images, or with a clip, by the processor alone."""
    image = description.image
    if image.frames == 1:
        for name, value in options.items():  # LLaVA's counts tokens by its attribute
            setattr(processor.image_processor, name, value)
        return _ids(processor, speller, text, images=[picture] * images, **options)
    frames = torch.zeros(()).expand(image.frames, 3, image.height, image.width)  # no pixel counts
    seconds = list(clip.times)
    times = SimpleNamespace(
        fps=1.0,
        sampled_fps=1.0,
        timestamps=seconds,
        frames_indices=seconds,
        duration=clip.duration,
    )
    block = processor.video_processor.merge_size
    patches = [image.views, *(side * block for side in description.shape.grids[0])]
    processor.video_processor.clip = {
        "pixel_values": frames[None],
        "pixel_values_videos": frames[None],
        "video_grid_thw": torch.tensor([patches]),
        "video_metadata": [times],
        "num_soft_tokens_per_video": [description.view_tokens],
        "num_frames_per_video": np.asarray([image.frames]),
        "grids_videos": np.zeros((image.frames, 2), np.int64),
        # In patches, of which 4x4 become a token of MiniCPM-V.
        "target_sizes_videos": 4 * np.asarray(description.shape.grids[: image.frames]),
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


def _text(description: Description, processor: Any, order: str, system: Any) -> str:
    """What the checkpoint's own template writes."""
    template = chat_template(processor)
    if template is None:
        return order.replace("I", description.placeholder).replace("T", ODD_QUESTION)
    kind = "video" if description.image.frames > 1 else "image"
    parts = {"I": {"type": kind}, "T": {"type": "text", "text": ODD_QUESTION}}
    chat = [{"role": "system", "content": system}] if system else []
    chat.append({"role": "user", "content": [parts[part] for part in order]})
    # A processor does not ask its tokenizer for one; for a clip it may have one of its own.
    own = processor.chat_template or ("I" in order and description.chat_template)
    named = None if own else template
    with templates.limited():
        return str(
            processor.apply_chat_template(chat, chat_template=named, add_generation_prompt=True)
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
