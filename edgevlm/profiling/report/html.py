"""HTML without a template: elements that escape their contents, and the style of our pages.

Text is escaped everywhere, because only `tag` makes `Html`. A page loads nothing: its style is
inline, no script runs, and its policy forbids both, also to names from a bundle.
"""

from __future__ import annotations

import html
import json
from typing import Any

from edgevlm.profiling.stages import colour

VOID = ("meta", "rect", "line", "path", "br")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1c2024;--soft:#5d666f;--line:#d9dee3;
--card:#f5f7f9;--blue:#0072b2;--sky:#56b4e9;--green:#009e73;--yellow:#d9a800;--orange:#e0701a;
--pink:#cc79a7;--grey:#8b949e;--dim:#b9c0c7;--violet:#7a5fb5;--bad:#c0341d}
@media (prefers-color-scheme:dark){:root{--ground:#14171a;--ink:#e6e9ec;--soft:#9aa4ae;
--line:#333a41;--card:#1d2226;--blue:#4aa3df;--sky:#8ccbf2;--green:#2bbf93;--yellow:#f0c84b;
--orange:#f28c3c;--pink:#dd9ac0;--grey:#79828b;--dim:#525b64;--violet:#a58be0;--bad:#ff7a62}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:20px 16px 48px;background:var(--ground);
color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
overflow-wrap:anywhere}
h1{font-size:24px;line-height:1.25;margin:8px 0 2px}
h2{font-size:17px;margin:36px 0 4px}
p{margin:4px 0 10px}.soft{color:var(--soft)}small,.small{font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 12px}
.tile b{display:block;font-size:24px;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{font-size:13px;color:var(--soft)}
.split{display:flex;height:34px;border-radius:6px;overflow:hidden;background:var(--line)}
.split i{display:block;min-width:1px}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;margin:8px 0;font-size:13px}
.legend i,.dot{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
.lanes{display:grid;grid-template-columns:max-content 1fr;gap:3px 10px;align-items:center}
.lanes>span{font-size:13px;color:var(--soft);text-align:right}
.lanes svg{display:block;width:100%;background:var(--card);border-radius:3px}
.axis{position:relative;height:18px;font-size:12px;color:var(--soft);
font-variant-numeric:tabular-nums}
.axis span{position:absolute;transform:translateX(-50%)}.axis span:first-child{transform:none}
.axis b{position:absolute;right:0;font-weight:400}
.bar{display:block;height:14px;border-radius:3px;min-width:2px;background:var(--blue)}
.funnel{display:grid;grid-template-columns:max-content 1fr;gap:6px 12px;align-items:center}
.funnel>span:nth-child(odd){font-size:13px;color:var(--soft)}
.funnel .bar{height:22px;background:var(--blue)}.funnel .to{background:var(--green)}
.funnel em{font-style:normal;font-size:13px;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px}
th{font-weight:600;color:var(--soft);text-align:left;white-space:nowrap}
th,td{padding:5px 10px 5px 0;overflow-wrap:normal;
border-bottom:1px solid var(--line);vertical-align:middle}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.name{min-width:92px;overflow-wrap:anywhere}td.bars{width:24%;min-width:70px}
.note{border-left:4px solid var(--bad);background:var(--card);padding:8px 12px;margin:8px 0}
.bad{color:var(--bad);font-weight:600}
dl{display:grid;grid-template-columns:fit-content(40%) 1fr;gap:2px 14px;margin:6px 0;font-size:13px}
dt{color:var(--soft)}dd{margin:0}
@media (max-width:620px){.hide{display:none}dl{grid-template-columns:1fr}dt{margin-top:6px}
h1{font-size:20px}th{white-space:normal}.tile b{font-size:20px}.tiles{grid-template-columns:1fr 1fr}
.tile:last-child:nth-child(odd){grid-column:1/-1}
.lanes>span{font-size:11px}.lanes{gap:3px 6px}td.bars{min-width:40px}
td.name{width:45%}}
"""


class Html(str):
    """Text that is HTML already; made by `tag` and `data`."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: str | float | None) -> Html:
    """An element; `class_` is `class`, None is left out."""
    properties = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID and not children:
        return Html(f"<{name}{properties}>" if name in ("meta", "br") else f"<{name}{properties}/>")
    inside = "".join(escape(child) for child in children if child is not None)
    return Html(f"<{name}{properties}>{inside}</{name}>")


def escape(text: str) -> Html:
    """Text as HTML; what is HTML stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(text, quote=True))


def data(identifier: str, document: Any) -> Html:
    """A JSON document inside a page; no name in it can close its element or open another."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Html(f'<script type="application/json" id="{html.escape(identifier)}">{text}</script>')


def page(title: str, *parts: str | None) -> str:
    """A complete document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", *parts), lang="en") + "\n"


def tile(value: str, label: str) -> Html:
    """A figure and its label."""
    return tag("div", tag("b", value), tag("span", label), class_="tile")


def legend(labels: list[tuple[str, str]]) -> Html:
    """What the colours mean: pairs of time share and label."""
    entries = [
        tag("span", tag("i", style=f"background:{colour(name)}"), label) for name, label in labels
    ]
    return tag("div", *entries, class_="legend")


def rows(head: list[tuple[str, str]], lines: list[list[str]]) -> Html:
    """A table; each head is a text and the class of its cells (`n` is a number)."""
    first = [tag("th", text, class_=kind or None) for text, kind in head]
    cells = [
        [tag("td", c, class_=k or None) for c, (_, k) in zip(line, head, strict=True)]
        for line in lines
    ]
    table = tag("table", tag("tr", *first), *(tag("tr", *line) for line in cells))
    return tag("div", table, class_="wide")


def facts(pairs: list[tuple[str, str]]) -> Html:
    """A list of names and values."""
    return tag("dl", *(item for k, v in pairs for item in (tag("dt", k), tag("dd", v))))
