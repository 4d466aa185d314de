"""`edgevlm methods`: token-reduction methods, with their source and the differences from it."""

from __future__ import annotations

import textwrap
from typing import Any

from edgevlm.cli.shared import options as o
from edgevlm.cli.shared.output import answer, table
from edgevlm.libraries import require_torch
from edgevlm.registry import METHODS

ABOUT = (
    "A method here is a way to have fewer visual tokens, most often a paper's, as a static graph:"
    " the same number of tokens for every picture. At site tokens it works on what the projector"
    " gives, where many originals work before it; the summary, and `differs` with --json, say where"
    " that makes another result. What was compared with the original, and nothing beyond it, is:"
)


def main(json: o.Json = False) -> None:
    """List the token-reduction methods, and how each was compared with its original."""
    require_torch()
    from edgevlm.compress.shared.contract import COMPARISONS

    rows = [_row(name) for name in METHODS.names()]
    cells = [
        [r["name"], ", ".join(r["sites"]), _shown(r["compared"]), r["summary"], r["source"]]
        for r in rows
    ]
    width = max(map(len, COMPARISONS))
    legend = (f"  {name:{width}}  {meaning}" for name, meaning in COMPARISONS.items())
    methods = table(["method", "sites", "compared by", "summary", "source"], cells)
    answer(rows, "\n".join([*textwrap.wrap(ABOUT, 100), *legend, "", methods]), json)


def _row(name: str) -> dict[str, Any]:
    sites = METHODS.sites_of(name)
    modules = [METHODS.load(name, site) for site in sites]
    return {
        "name": name,
        "sites": sites,
        "compared": {s: m.COMPARED for s, m in zip(sites, modules, strict=True)},
        "summary": _joined([module.SUMMARY for module in modules]),
        "source": _joined([module.SOURCE for module in modules]),
        "differs": _joined([module.DIFFERS for module in modules]),
        "signals": [signal for module in modules for signal in module.Method.signals],
    }


def _joined(texts: list[str]) -> str:
    """The texts of the method's files, each once, in the order of the sites."""
    return "; ".join(dict.fromkeys(texts))


def _shown(compared: dict[str, str]) -> str:
    """One value for all sites, or one for each."""
    values = dict.fromkeys(compared.values())
    if len(values) == 1:
        return next(iter(values))
    return ", ".join(f"{value} ({site})" for site, value in compared.items())
