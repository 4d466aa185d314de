"""What a chat template writes, and what it must not do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from edgevlm.errors import ModelError
from edgevlm.planning.prompt import QUESTION, REPLY, SYSTEM, Joints, render_prompts

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
    ("trim", "sides"),
    [("| trim", ("right", "both")), (".rstrip()", ("right", "right")), ("", ("", ""))],
)
def test_a_template_may_trim_a_whole_message(trim, sides):
    """Behind an image the blanks before a question are inside of it, as in Qwen3.5."""
    parts = PARTS.replace("TEXT", "p.text")
    message = "{% set written %}" + parts + "{% endset %}{{ (written | string)" + trim + " }}"
    texts = rendered("{% for m in messages %}" + message + "{{ eos_token }}{% endfor %}")
    assert (texts.trim, texts.plain_trim) == sides


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


END = "{{ 'assistant:' if add_generation_prompt }}"
FIRST = (
    "{% if messages[0].role == 'system' %}{{ SYSTEM }}{% set messages = messages[1:] %}{% endif %}"
)
LAST = (
    "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.s = m.content[0].text %}{% else %}{% if WHERE %}{{ ns.s }}{% endif %}"
    "{{ m.role }}:" + PARTS.replace("TEXT", "p.text") + "</s>{% endif %}{% endfor %}" + END
)


@pytest.mark.parametrize(
    ("template", "opening", "trim"),
    [
        (turns(), f"system:{SYSTEM}</s>user:", ""),
        (turns("p.text | trim"), f"system:{SYSTEM}</s>user:", "both"),
        (turns(start=FIRST.replace("SYSTEM", "'<<' + messages[0].content[0].text + '>>'")),
         f"<<{SYSTEM}>>user:", ""),
        (turns(start=FIRST.replace("SYSTEM", "'<<' + messages[0].content.lstrip() + '>>'")),
         f"<<{SYSTEM}>>user:", "left"),
        (turns(start="{{ 'Be kind.' if messages[0].role != 'system' }}"),
         f"system:{SYSTEM}</s>user:", ""),
        (turns(start="Today is Monday."), f"Today is Monday.system:{SYSTEM}</s>user:", ""),
        (LAST.replace("WHERE", "loop.index0 == 1"), f"{SYSTEM}user:", ""),
    ],
    ids=["a turn", "trimmed", "a part", "a plain text", "a default", "a default beside", "before"],
)  # fmt: skip
def test_a_system_text_is_in_front_of_the_first_turn(template, opening, trim):
    texts = rendered(template)
    assert texts.system.first == f"{opening}<image>{texts.first.partition('<image>')[2]}"
    assert texts.system.plain == f"{opening}{QUESTION}{texts.plain.partition(QUESTION)[2]}"
    assert texts.system.trim == trim
    plain = "messages[0].content.lstrip" in template
    assert texts.system.form("x") == ("x" if plain else [{"type": "text", "text": "x"}])


@pytest.mark.parametrize(
    "template",
    [
        turns(start="{{ raise_exception('no') if messages[0].role == 'system' }}"),
        turns(start=FIRST.replace("SYSTEM", "''")),
        turns(start=FIRST.replace("SYSTEM", "messages[0].content[0].text | upper")),
        turns(start=FIRST.replace("SYSTEM", "messages[0].content[0].text[:99]")),
        turns(start=FIRST.replace("SYSTEM", "messages[0].content[0].text * 2")),
        turns(start=FIRST.replace("SYSTEM", "messages[0].content | tojson")),
        turns(end="{{ messages[0].content[0].text if messages[0].role == 'system' }}"),
        LAST.replace("WHERE", "loop.last"),
        LAST.replace("WHERE", "m.role == 'user'"),
        None,
    ],
    ids=["refused", "lost", "changed", "cut", "twice", "as JSON", "at the end", "the last turn",
         "every turn", "no template"],
)  # fmt: skip
def test_a_system_text_without_a_place(template):
    assert rendered(template).system is None


@pytest.mark.parametrize(
    ("parts", "joints"),
    [
        (PARTS.replace("TEXT", "p.text"), ("", "", "</s>assistant:")),
        (PARTS.replace("TEXT", "p.text | trim"), ("", "", "</s>assistant:")),
        (PARTS.replace("TEXT", "p.text + ' '"), (" ", " ", "</s>assistant:")),
        (PARTS.replace("TEXT", "'\n' + p.text"), ("\n", "", "</s>assistant:")),
        (PARTS.replace("TEXT", "(p.text if loop.last else p.text + '~')"),
         ("~", "~", "</s>assistant:")),
        ("{{ ' ' if m.content[0].type == 'text' }}" + PARTS.replace("TEXT", "p.text"),
         ("", "", "</s>assistant:")),
        (PARTS.replace("TEXT", "p.text") + "{{ '!' if m.content[-1].type == 'image' }}",
         ("", "", "!</s>assistant:")),
    ],
    ids=["words", "trimmed", "a blank behind", "a line each", "but the last", "text first", "last"],
)  # fmt: skip
def test_what_stands_between_texts_and_images(parts, joints):
    texts = rendered("{% for m in messages %}" + parts + "{{ eos_token }}{% endfor %}" + END)
    assert texts.joints == Joints(*joints)


IMAGES = "{% for p in m.content if p.type == 'image' %}<image>{% endfor %}"
TEXTS = "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"


@pytest.mark.parametrize(
    "parts",
    [
        IMAGES + TEXTS,
        PARTS.replace("TEXT", "(p.text if loop.index < 4 else p.text + '~')"),
        PARTS.replace("TEXT", "('Text ' ~ loop.index ~ p.text)"),
        PARTS.replace("TEXT", "(p.text if loop.index0 != 2 else '')"),
        IMAGES + "{{ m.content[-1].text }}",
        IMAGES + PARTS.replace("TEXT", "p.text").replace("'<image>'", "''"),
    ],
    ids=["images first", "from the fourth", "numbered", "one lost", "last text", "both"],
)  # fmt: skip
def test_a_template_with_an_order_of_its_own(parts):
    made = "{% for m in messages %}" + parts + "{{ eos_token }}{% endfor %}" + END
    assert rendered(made).joints is None
