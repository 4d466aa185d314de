"""The table of docs/reliability.md has every group of hostile bundles, and none is a fault."""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "hostile"


@pytest.fixture(scope="module")
def script():
    """All names of the script's files."""
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT))
        for file in ("asking", "changes", "surroundings"):
            patch.setitem(sys.modules, file, importlib.import_module(file))
            names |= vars(sys.modules[file])
        main = importlib.util.spec_from_file_location("hostile", SCRIPT / "__main__.py")
        module = importlib.util.module_from_spec(main)
        main.loader.exec_module(module)
        yield SimpleNamespace(**(names | vars(module)))


def test_the_table_is_of_all_groups(script):
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    table = page.partition(script.BEGIN)[2].partition(script.END)[0].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    assert [row[0] for row in rows] == [*script.GROUPS, *script.SURROUNDINGS]
    for _, tried, answered, refused, other, _ in rows:
        assert int(tried) == int(answered) + int(refused) > 0
        assert other == "0"


@pytest.mark.parametrize(
    ("code", "out", "err", "kind"),
    [
        (0, "5\n", "", "answered"),
        (1, "", "[   0.0 s] open\nedgevlm: 'x' was changed\n", "refused"),
        (1, "", "edgevlm: a\nsecond line\n", "untidy"),
        (1, "", "Traceback (most recent call last):\nValueError: x\n", "traceback"),
        (-6, "", "", "signal 6"),
        (-9, "", "", "hang"),
        (0, "", "", "untidy"),
    ],
)
def test_what_counts(script, code, out, err, kind):
    assert script.judged(code, out, err, 0, None).kind == kind
    assert script.judged(code, out, err, 11, 10).kind == "memory"


def test_every_group_changes_something(script, exported, tmp_path):
    for make, _ in script.GROUPS.values():
        changes = list(make(exported.bundle.path, random.Random(0)))
        assert len(changes) >= 5
