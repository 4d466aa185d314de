"""Chat templates run within limits, and those that chats have are let through."""

from __future__ import annotations

import resource
import sys

import pytest

pytest.importorskip("transformers")

from transformers.utils.chat_template_utils import render_jinja_template

from edgevlm.errors import ModelError
from edgevlm.models import templates

CHAT = [[{"role": "user", "content": "x"}]]


def render(template):
    templates.check(template)
    with templates.limited():
        (text,), _ = render_jinja_template(CHAT, chat_template=template)
    return text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'x' * 10**9 }}", "line 1 of the chat template raises to a power"),
        ("\n{{ messages|length * messages|length }}", "line 2 of the chat template raises"),
        ("x" * 1_000_001, "the chat template has 1,000,001 letters, 1,000,000 at most"),
        (
            "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
            "the chat template runs more than 1,000,000 lines",
        ),
        ("{{ 'x' * 999999999 }}", "the chat template takes more than 512 MB of memory"),
        (
            "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}"
            "{% endfor %}",
            "the chat template takes more than 512 MB of memory",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template does not render: "),
        ("{{ raise_exception('one\ntwo') }}", "the chat template does not render: one"),
        ("{{ " + "(" * 5000, "the chat template "),
        ("{{ 1" + "+1" * 50_000 + " }}", "the chat template is nested too deeply"),
        ("{{ lipsum(n=1000000) }}", "line 1 of the chat template writes random text (lipsum)"),
        ("\n{{ [1, 2]|random }}", "line 2 of the chat template writes random text (random)"),
    ],
)
def test_a_template_that_is_no_chats_is_refused(template, message):
    limits, tracer = resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()
    with pytest.raises(ModelError) as refusal:
        render(template)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert sys.gettrace() is tracer


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", "user: x"),
        ("{{ '=' * 3 }}{{ loop_count|default(2) * 2 }}", "===4"),
        ("{% for i in [1, 2] %}{% if i > 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "x"),
    ],
)
def test_a_chats_template_is_what_it_was(template, text):
    assert render(template) == text
