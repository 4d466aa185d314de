"""The page of a profile: it says what the document says, and no name can break out of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

pytest.importorskip("onnxruntime")

import edgevlm
from edgevlm.bundle.documents import to_document
from edgevlm.profiling.document import Profile, parse_profile
from edgevlm.profiling.report.comparison import compare, comparison_page
from edgevlm.profiling.report.html import Html, data, tag
from edgevlm.profiling.report.page import report
from edgevlm.units import megabytes, milliseconds

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\u2028&amp;'
VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Elements, attributes and text of a page; unclosed elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.setdefault(self.open[-1] if self.open else "", []).append(text)


def parsed(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def profile(exported) -> Profile:
    return edgevlm.load(exported.bundle.path, threads=1).profile(runs=3, tokens_generated=4)


def test_figures_on_the_page_are_the_documents(profile):
    page = report(profile)
    reader = parsed(page)
    (inside,) = reader.text["script"]
    assert parse_profile(inside) == profile
    assert reader.text["b"][:2] == [
        f"{milliseconds(profile.ttft_ms)} ms", f"{profile.decode_tokens_per_s:,.1f} /s"
    ]  # fmt: skip
    assert megabytes(profile.peak_rss_bytes) in reader.text["b"]
    cells = reader.text["td"]
    for block in profile.blocks:
        at = cells.index(f"{block.name} {block.function}")
        expected = [block.answer_ms, None, block.run_ms, block.run_ms, block.load_ms]
        assert cells[at + 1] == milliseconds(expected[0].median)
        assert cells[at + 2] == f"{block.calls:,}"
        assert cells[at + 3] == milliseconds(block.run_ms.median)
        assert cells[at + 4] == milliseconds(block.run_ms.p90)
        assert cells[at + 5] == milliseconds(block.load_ms.median)
    assert profile.not_measured["embedding"] == "the bundle answers with text"
    for name, reason in profile.not_measured.items():
        if name in ("embedding", "video"):
            continue
        assert any(name in text.split(", ") for text in reader.text["dt"])
        assert reason in reader.text["dd"]
    titles = reader.text["title"]
    assert sum(title.startswith("run ") for title in titles) == (
        len([e for e in (*profile.answer.events, *profile.opening.events) if e.kind == "run"])
    )


def test_it_loads_nothing(profile):
    page = report(profile)
    reader = parsed(page)
    assert {name for name, _ in reader.elements} & {"link", "img", "iframe", "a"} == set()
    assert [a for name, a in reader.elements if name == "script"] == [
        {"type": "application/json", "id": "profile"}
    ]
    assert not re.search(r"url\(|@import|https?:", page.split("<script")[0])
    policies = [a["content"] for name, a in reader.elements if name == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "prefers-color-scheme:dark" in page
    assert 'content="width=device-width' in page


def test_a_hostile_name_stays_text(profile):
    document = to_document(profile)
    document["bundle"] = document["text"]["question"]["prompt"] = HOSTILE
    for block in document["blocks"]:
        block["name"] = HOSTILE + block["name"]
    for event in document["answer"]["events"]:
        event["block"] = HOSTILE
    for operator in document["operators"]:
        operator["module"] = operator["operator"] = HOSTILE
    document["not_measured"] = dict.fromkeys(document["not_measured"], HOSTILE)
    hostile = parse_profile(json.dumps(document))
    for page in (report(hostile), comparison_page(compare(hostile, hostile, (HOSTILE, "b")))):
        reader = parsed(page)
        assert "img" not in {name for name, _ in reader.elements}
        assert not any("onerror" in attributes for _, attributes in reader.elements)
        assert len([n for n, _ in reader.elements if n == "script"]) <= 1
        assert any(HOSTILE in text for text in reader.text["td"])
    (inside,) = parsed(report(hostile)).text["script"]
    assert parse_profile(inside) == hostile


def test_elements_escape_what_they_are_given():
    assert tag("p", "<b>", tag("i", "&"), class_='"x"') == (
        '<p class="&quot;x&quot;">&lt;b&gt;<i>&amp;</i></p>'
    )
    assert isinstance(tag("p"), Html)
    assert "</" not in data("x", {"a": "</script>"})[:-9]


def test_no_figures_is_said(profile):
    reasons = dict(profile.not_measured) | dict.fromkeys(
        ("operators", "placement", "fallback"), "R"
    )
    bare = replace(profile, operators=None, placement=None, fallback=None, not_measured=reasons)
    assert "Not measured: R." in report(bare)
    hot = replace(
        profile.conditions, temperature_before_c=40.0, temperature_after_c=71.5, throttled=True,
        frequency_before_mhz=3000.0, frequency_after_mhz=2000.0,
    )  # fmt: skip
    gone = {
        n for n in reasons if n.startswith(("conditions.temp", "conditions.f", "conditions.th"))
    }
    gone |= {"energy_joules", "temperature_c", "operators", "placement", "fallback"}
    reasons = {name: why for name, why in reasons.items() if name not in gone}
    warm = replace(
        profile, conditions=hot, energy_joules=1.25, temperature_c=71.5, not_measured=reasons
    )
    page = report(warm)
    for words in ("1.250 J per answer", "40.0 °C before, 71.5 °C after", "3,000 MHz before"):
        assert words in page


@pytest.mark.parametrize(
    ("value", "text"), [(0.0312, "0.031"), (4.2, "4.20"), (37.12, "37.1"), (1512.4, "1,512")]
)
def test_milliseconds(value, text):
    assert milliseconds(value) == text
