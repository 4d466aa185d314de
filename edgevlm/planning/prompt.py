"""The layout of a prompt, from the checkpoint's chat template and tokenizer.

The template is rendered once, at plan time, with marks where run-time text and images go; fixed
text becomes token ids. A device then needs neither Jinja nor the template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer

from edgevlm.bundle.host import Layout, LayoutItem
from edgevlm.errors import ModelError
from edgevlm.models.family import TABLE_ROW, Description

# Private-use characters: no tokenizer text and no question holds them.
_QUESTION, _REPLY = "\ue000", "\ue001"


def make_layout(
    description: Description,
    template: str | None,
    tokenizer: Tokenizer,
    vocabulary: int,
    reduced: bool,
) -> Layout:
    """Items of a first turn with and without an image, of one image, and of a further turn.

    Args:
        description: The family's numbers.
        template: Chat template (Jinja); None means a plain prompt: image, then question.
        tokenizer: The checkpoint's tokenizer.
        vocabulary: Rows of the embedding table that are tokens; extra rows follow.
        reduced: Whether a method removes tokens.

    Raises:
        ModelError: If the template does not render, or loses the question or the image.
    """
    template = description.chat_template or template
    first, plain, further = _render(description, template)
    before, _, after = first.partition(description.placeholder)
    image = description.reduced_image if reduced else description.full_image
    special = _special(tokenizer)
    # Text of the prompt that meets text of the image (a clip begins with its duration).
    starts = _is_text(image[0], special, at_end=False)
    ends = _is_text(image[-1], special, at_end=True)
    start = _start(first, tokenizer)
    items_before = _items([start, before], tokenizer, vocabulary, open_end=starts)
    items_after = _items([after], tokenizer, vocabulary, open_start=ends)
    return Layout(
        prompt=(*items_before, LayoutItem("image"), *items_after),
        image=_items(
            image,
            tokenizer,
            vocabulary,
            open_start=_is_text(before, special, at_end=True),
            open_end=_is_text(after, special, at_end=False),
        ),
        text=_items([start, plain], tokenizer, vocabulary),
        turn=_items([further], tokenizer, vocabulary),
    )


def _render(description: Description, template: str | None) -> tuple[str, str, str]:
    """Text of a first turn with an image, without one, and of a further turn."""
    if template is None:
        return f"{description.placeholder}{_QUESTION}", _QUESTION, f"\n{_QUESTION}"
    # Imported here: transformers is heavy and only plans need it.
    from transformers.utils.chat_template_utils import render_jinja_template

    question = [{"type": description.content_type}, {"type": "text", "text": _QUESTION}]
    chat: list[dict[str, Any]] = [{"role": "user", "content": question}]
    more = [
        {"role": "assistant", "content": [{"type": "text", "text": _REPLY}]},
        {"role": "user", "content": [{"type": "text", "text": _QUESTION}]},
    ]
    try:
        (first, plain, both), _ = render_jinja_template(
            [chat, more[1:], chat + more],
            chat_template=template,
            add_generation_prompt=True,
            bos_token="",
            eos_token="",
        )
    except Exception as cause:
        raise ModelError(f"the chat template does not render: {cause}") from cause
    further = both.partition(_REPLY)[2]
    if first.count(description.placeholder) != 1 or _QUESTION not in first + further:
        raise ModelError(
            f"the chat template must write '{description.placeholder}' once and the question;"
            f" it wrote {first!r}"
        )
    return first, plain, further


def _start(text: str, tokenizer: Tokenizer) -> LayoutItem:
    """Ids that the tokenizer puts in front of a first turn (Llama's `<s>`), unless it has them."""
    encoded = tokenizer.encode("a")
    count = [*encoded.special_tokens_mask, 0].index(0)
    written = count > 0 and text.startswith(encoded.tokens[0])
    return LayoutItem("ids", ids=() if written else tuple(encoded.ids[:count]))


def _items(
    texts: Sequence[str | LayoutItem],
    tokenizer: Tokenizer,
    vocabulary: int,
    open_start: bool = False,
    open_end: bool = False,
) -> tuple[LayoutItem, ...]:
    """Items of text and of what stands between; an open end will meet text of another layout."""
    items: list[LayoutItem] = []
    joined = _joined(texts)
    for index, text in enumerate(joined):
        if isinstance(text, str):
            items += _text_items(
                text,
                tokenizer,
                open_start=_is_open(joined[index - 1]) if index else open_start,
                open_end=_is_open(joined[index + 1]) if index + 1 < len(joined) else open_end,
            )
        elif text.kind == TABLE_ROW:
            items.append(LayoutItem("ids", ids=(vocabulary + text.start,)))
        else:
            items.append(text)
    merged: list[LayoutItem] = []
    for item in items:
        if item.kind == "ids" and merged and merged[-1].kind == "ids":
            merged[-1] = replace(merged[-1], ids=merged[-1].ids + item.ids)
        elif item.kind != "ids" or item.ids:
            merged.append(item)
    return tuple(merged)


def _joined(items: Sequence[str | LayoutItem]) -> list[str | LayoutItem]:
    """Neighbouring texts become one, so that they are tokenized as one."""
    joined: list[str | LayoutItem] = []
    for item in items:
        if isinstance(item, str) and joined and isinstance(joined[-1], str):
            joined[-1] += item
        else:
            joined.append(item)
    return joined


def _text_items(
    text: str, tokenizer: Tokenizer, open_start: bool, open_end: bool
) -> list[LayoutItem]:
    """Ids of the fixed text; a run between special tokens that meets run-time text stays text."""
    runs = re.split(f"({_special(tokenizer)})", text)
    items: list[LayoutItem] = []
    fixed = ""
    for index, run in enumerate(runs):
        meets = (open_start and index == 0) or (open_end and index == len(runs) - 1)
        if _QUESTION in run:
            prefix, _, suffix = run.partition(_QUESTION)
            items += [_ids(fixed, tokenizer), LayoutItem("user_text", prefix=prefix, suffix=suffix)]
            fixed = ""
        elif meets and run:
            items += [_ids(fixed, tokenizer), LayoutItem("text", prefix=run)]
            fixed = ""
        else:
            fixed += run
    return [*items, _ids(fixed, tokenizer)]


def _special(tokenizer: Tokenizer) -> str:
    """Pattern of the tokens at which a tokenizer cuts text before anything else."""
    special = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    # Without any, a pattern that never matches.
    return "|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)) or "(?!)"


def _is_text(item: str | LayoutItem, special: str, at_end: bool) -> bool:
    """Whether an item is text, not a special token or a row, at its start or end."""
    if isinstance(item, LayoutItem):
        return _is_open(item)
    runs = re.split(f"({special})", item)
    return bool(runs[-1 if at_end else 0])


def _is_open(item: str | LayoutItem) -> bool:
    """Whether an item is text that is known at run time."""
    return isinstance(item, LayoutItem) and item.kind in ("timestamp", "duration")


def _ids(text: str, tokenizer: Tokenizer) -> LayoutItem:
    return LayoutItem("ids", ids=tuple(tokenizer.encode(text, add_special_tokens=False).ids))
