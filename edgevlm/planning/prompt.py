"""What the checkpoint's chat template writes, around the question, the images and a reply.

The template is rendered once, at plan time, with marks where run-time text goes: a device then
needs neither Jinja nor the template. It is the one that the checkpoint's own processor would take,
with the special tokens that its tokenizer names. Where it does more with a question than take white
space off its ends, no fixed text can say so, and the checkpoint is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgevlm.bundle.host import SIDES
from edgevlm.errors import ModelError
from edgevlm.models import templates
from edgevlm.models.family import Description
from edgevlm.models.processor import chat_template
from edgevlm.runtimes.loops.spelling import trimmed

# Private-use characters: no tokenizer text and no question holds them.
QUESTION, REPLY = "\ue000", "\ue001"
# Questions that a filter of a template would change.
PROBES = (
    "  What is\tthis? \n", "\n\nA Question, IN CAPITALS\n- one\n- two  ", "", "   ", "7",
    "a <b>&amp;</b> \"c\" 'd' \\n {{ e }} {% f %} ﬁ é e\u0301 漢字 🙂", "A  wide   gap, " * 200,
)  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """Texts with marks: `QUESTION` where the question goes, `REPLY` where an answer stands.

    Attributes:
        first: A first turn with an image, for which the family's placeholder stands.
        plain: A first turn without one.
        both: A first turn, its reply, and a further turn.
        between: Text between two images; None where the template has no place for a second one.
        trim: Sides at which the template takes white space off the question.
    """

    first: str
    plain: str
    both: str
    between: str | None
    trim: str

    def further(self) -> str:
        """A further turn: what follows the reply."""
        return self.both.partition(REPLY)[2]


def render_prompts(description: Description, processor: Any) -> Prompts:
    """The texts of a checkpoint's turns.

    Raises:
        ModelError: If the template does not render, loses the question or the image, or does with a
            question what no layout can say.
    """
    template = description.chat_template or chat_template(processor)
    if template is None:
        image = description.placeholder
        both = f"{image}{QUESTION}{REPLY}\n{QUESTION}"
        return Prompts(f"{image}{QUESTION}", QUESTION, both, between="", trim="")
    templates.check(template)
    if "strftime_now" in template:
        raise ModelError(
            "the chat template writes today's date (strftime_now), and prompts are fixed;"
            " put a date into it"
        )
    names = processor.tokenizer.special_tokens_map
    first, plain, both = texts = _render(description, template, names, QUESTION)
    written = f"{first}{both.partition(REPLY)[2]}"
    if first.count(description.placeholder) != 1 or QUESTION not in written:
        raise ModelError(
            f"the chat template must write '{description.placeholder}' once and the question;"
            f" it wrote {first!r}"
        )
    if both.count(REPLY) != 1 or any(text.count(QUESTION) > 1 for text in (first, plain)):
        raise ModelError(f"the chat template must write a question and a reply once, not {both!r}")
    probed = [_render(description, template, names, probe) for probe in PROBES]
    for trim in SIDES:
        if all(
            [text.replace(QUESTION, trimmed(probe, trim)) for text in texts] == made
            for probe, made in zip(PROBES, probed, strict=True)
        ):
            between = _between(description, template, names, first)
            return Prompts(first, plain, both, between, trim)
    raise ModelError(
        "the chat template changes the question, or goes by what it says; only white space at its"
        f" ends can be taken off: of {PROBES[0]!r} it made {probed[0][1]!r}"
    )


def _render(
    description: Description, template: str, names: dict[str, str], question: str
) -> list[str]:
    """Texts of a first turn with an image, of one without, and of two turns."""
    reply = {"role": "assistant", "content": [{"type": "text", "text": REPLY}]}
    first, plain = _user(description, 1, question), _user(description, 0, question)
    return _rendered([[first], [plain], [first, reply, plain]], template, names)


def _between(
    description: Description, template: str, names: dict[str, str], first: str
) -> str | None:
    """What a template writes between images; None if it refuses several, or numbers them."""
    mark = description.placeholder
    before, _, after = first.partition(mark)
    chats = [[_user(description, count, QUESTION)] for count in (2, 3)]
    try:
        two, three = _rendered(chats, template, names)
    except ModelError:  # many a template raises an error of its own
        return None
    start, end = f"{before}{mark}", f"{mark}{after}"
    between = two[len(start) : len(two) - len(end)]
    written = two, three, mark in between
    expected = f"{start}{between}{end}", f"{start}{between}{mark}{between}{end}", False
    return between if written == expected else None


def _rendered(
    chats: Sequence[Sequence[dict[str, Any]]], template: str, names: dict[str, str]
) -> list[str]:
    # Imported here: transformers is heavy and only plans need it.
    from transformers.utils.chat_template_utils import render_jinja_template

    with templates.limited():
        rendered, _ = render_jinja_template(
            list(chats), chat_template=template, add_generation_prompt=True, **names
        )
    return list(rendered)


def _user(description: Description, images: int, question: str) -> dict[str, Any]:
    content = [{"type": description.content_type}] * images
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}
