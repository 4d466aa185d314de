"""The sequence of a prompt as parts, from the checkpoint's chat template and tokenizer.

The template is rendered once, at plan time, with marks where run-time text and pictures go; what is
fixed becomes token ids. A device then needs neither Jinja nor the template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer

from edgevlm.errors import ModelError
from edgevlm.models._family import TABLE_ROW, Description
from edgevlm.plan import Layout, Part

# Private-use characters: no tokenizer text and no question holds them.
_QUESTION, _REPLY = "\ue000", "\ue001"


def make_layout(
    description: Description, template: str | None, tokenizer: Tokenizer, vocabulary: int,
    reduced: bool,
) -> Layout:
    """Parts of a first turn, of one image, and of a further turn.

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
    first, further = _render(description, template)
    before, _, after = first.partition(description.placeholder)
    image = description.reduced_image if reduced else description.full_image
    return Layout(
        prompt=_parts([before, Part("image"), after], tokenizer, vocabulary),
        image=_parts(image, tokenizer, vocabulary),
        turn=_parts([further], tokenizer, vocabulary),
    )


def _render(description: Description, template: str | None) -> tuple[str, str]:
    if template is None:
        return f"{description.placeholder}{_QUESTION}", f"\n{_QUESTION}"
    # Imported here: transformers is heavy and only plans need it.
    from transformers.utils.chat_template_utils import render_jinja_template

    question = [{"type": description.content_type}, {"type": "text", "text": _QUESTION}]
    chat: list[dict[str, Any]] = [{"role": "user", "content": question}]
    more = [
        {"role": "assistant", "content": [{"type": "text", "text": _REPLY}]},
        {"role": "user", "content": [{"type": "text", "text": _QUESTION}]},
    ]
    try:
        (first, both), _ = render_jinja_template(
            [chat, chat + more], chat_template=template, add_generation_prompt=True,
            bos_token="", eos_token="",
        )
    except Exception as cause:
        raise ModelError(f"the chat template does not render: {cause}") from cause
    further = both.partition(_REPLY)[2]
    if first.count(description.placeholder) != 1 or _QUESTION not in first + further:
        raise ModelError(
            f"the chat template must write '{description.placeholder}' once and the question;"
            f" it wrote {first!r}"
        )
    return first, further


def _parts(
    items: Sequence[str | Part], tokenizer: Tokenizer, vocabulary: int
) -> tuple[Part, ...]:
    parts: list[Part] = []
    for item in _joined(items):
        if isinstance(item, str):
            parts += _text_parts(item, tokenizer)
        elif item.kind == TABLE_ROW:
            parts.append(Part("ids", ids=(vocabulary + item.start,)))
        else:
            parts.append(item)
    merged: list[Part] = []
    for part in parts:
        if part.kind == "ids" and merged and merged[-1].kind == "ids":
            merged[-1] = replace(merged[-1], ids=merged[-1].ids + part.ids)
        elif part.kind != "ids" or part.ids:
            merged.append(part)
    return tuple(merged)


def _joined(items: Sequence[str | Part]) -> list[str | Part]:
    """Neighbouring texts become one, so that they are tokenized as one."""
    joined: list[str | Part] = []
    for item in items:
        if isinstance(item, str) and joined and isinstance(joined[-1], str):
            joined[-1] += item
        else:
            joined.append(item)
    return joined


def _text_parts(text: str, tokenizer: Tokenizer) -> list[Part]:
    """Ids of the fixed text; the run between special tokens that holds the question stays text."""
    special = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    pattern = "|".join(re.escape(s) for s in sorted(special, key=len, reverse=True))
    pieces = re.split(f"({pattern})", text) if special else [text]
    parts: list[Part] = []
    fixed = ""
    for piece in pieces:
        if _QUESTION in piece:
            prefix, _, suffix = piece.partition(_QUESTION)
            parts += [_ids(fixed, tokenizer), Part("user_text", prefix=prefix, suffix=suffix)]
            fixed = ""
        else:
            fixed += piece
    return [*parts, _ids(fixed, tokenizer)]


def _ids(text: str, tokenizer: Tokenizer) -> Part:
    return Part("ids", ids=tuple(tokenizer.encode(text, add_special_tokens=False).ids))
