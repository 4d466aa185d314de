"""What a chat template writes, and what it must not do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from edgevlm.errors import ModelError
from edgevlm.planning.prompt import QUESTION, REPLY, render_prompts

PARTS = "{% for p in m.content %}{{ TEXT if p.type == 'text' else '<image>' }}{% endfor %}"
TURNS = "{% for m in messages %}{{ m.role }}:" + PARTS + "{{ eos_token }}{% endfor %}"
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def rendered(template, own=None):
    """The texts of a template, which is the processor's, or else its tokenizer's `own`."""
    tokenizer = SimpleNamespace(chat_template=own, special_tokens_map=NAMES)
    processor = SimpleNamespace(chat_template=template, tokenizer=tokenizer)
    description = SimpleNamespace(chat_template=None, placeholder="<image>", content_type="image")
    return render_prompts(description, processor)


def turns(text="p.text", start="", end="{{ 'assistant:' if add_generation_prompt }}"):
    return start + TURNS.replace("TEXT", text) + end


def test_special_tokens_are_written_by_name():
    texts = rendered(turns(start="{{ bos_token }}{{ pad_token }}"))
    assert texts.first == f"<s><pad>user:<image>{QUESTION}</s>assistant:"
    assert texts.plain == f"<s><pad>user:{QUESTION}</s>assistant:"
    assert texts.both.partition(REPLY)[2] == f"</s>user:{QUESTION}</s>assistant:"
    assert texts.trim == ""


@pytest.mark.parametrize(
    ("image", "between"),
    [
        ("<image>", ""),
        ("<image>\n", "\n"),
        ("<a><image></a>", "</a><a>"),
        ("{{ '' if loop.index0 else 'Look: ' }}<image>", ""),
        ("Picture {{ loop.index }}: <image> ", None),
        ("{{ raise_exception('one image') if loop.index0 else '' }}<image>", None),
        ("{{ '' if loop.index0 else '<image>' }}", None),
    ],
)
def test_what_stands_between_two_images(image, between):
    """None where the template has no place for a second one, or numbers them."""
    shown = "{% if p.type == 'text' %}{{ p.text }}{% else %}" + image + "{% endif %}"
    parts = "{% for p in m.content %}" + shown + "{% endfor %}"
    texts = rendered("{% for m in messages %}" + parts + "{{ eos_token }}{% endfor %}")
    assert texts.between == between


@pytest.mark.parametrize("own", [False, True], ids=["processor", "tokenizer"])
def test_the_default_of_named_templates_is_taken(own):
    named = {"default": turns(), "tool_use": "x"}
    texts = rendered(None, named) if own else rendered(named)
    assert texts.first == f"user:<image>{QUESTION}</s>assistant:"


def test_named_templates_without_a_default_are_refused():
    with pytest.raises(
        ModelError, match=r"^the chat templates are a, b; name one of them 'default'$"
    ):
        rendered({"a": turns(), "b": "x"})


@pytest.mark.parametrize(
    ("text", "trim"),
    [
        ("p.text | trim", "both"),
        ("p.text.strip()", "both"),
        ("p.text.lstrip()", "left"),
        ("p.text.rstrip()", "right"),
        ("p.text", ""),
        ("(p.text | string)", ""),
    ],
)
def test_white_space_that_the_template_takes_off_a_question(text, trim):
    assert rendered(turns(text)).trim == trim


@pytest.mark.parametrize(
    "text",
    [
        "p.text | upper", "p.text | capitalize", "p.text | replace('\\n', ' ')", "p.text | e",
        "p.text | tojson", "p.text[:100]", "p.text.strip('\\n')", "p.text | truncate(200)",
        "(p.text if p.text else 'Describe.')", "p.text | wordwrap(40)", "p.text.title()",
        "(p.text if p.text != '7' else 'x')", "(p.text | trim | replace('  ', ' '))",
    ],
)  # fmt: skip
def test_what_else_a_template_does_with_a_question_is_refused(text):
    with pytest.raises(ModelError, match=r"^the chat template changes the question, or goes by"):
        rendered(turns(text))


def test_a_date_is_refused():
    with pytest.raises(
        ModelError, match=r"^the chat template writes today's date \(strftime_now\)"
    ):
        rendered(turns(start="{{ strftime_now('%d %b') }}"))


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (turns("p.text + p.text"), r"must write a question and a reply once"),
        (turns("''"), r"must write '<image>' once and the question"),
        (turns("p.text + '<image>'"), r"must write '<image>' once"),
        ("{{ nothing.at.all }}", r"does not render: 'nothing' is undefined$"),
        ("{% if", r"does not render: "),
        ("{{ raise_exception('system first') }}", r"does not render: system first$"),
    ],
)
def test_a_template_that_loses_something_is_refused(template, line):
    with pytest.raises(ModelError, match=f"^the chat template {line}"):
        rendered(template)


def test_without_a_template_the_question_follows_the_image():
    texts = rendered(None)
    assert (texts.first, texts.plain) == (f"<image>{QUESTION}", QUESTION)
    assert texts.both.partition(REPLY)[2] == f"\n{QUESTION}"
