"""The manifest of an encoder: what its constants must fit."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from edgevlm.errors import BundleError

ROOT = Path(__file__).parents[3]
# What may name a kind: its own files, and who finds them by that name.
NAMED = ("edgevlm/bundle/kinds/", "edgevlm/registry.py")


@pytest.fixture
def refused(embedder, tmp_path):
    """The message that a changed manifest of a tiny CLIP is refused with."""
    from edgevlm.bundle.files import Bundle

    def message(edit):
        path = Path(shutil.copytree(embedder("tiny-clip").bundle.path, tmp_path / "copy.edgevlm"))
        file = path / "manifest.json"
        document = json.loads(file.read_text("utf-8"))
        edit(document["host"])
        file.write_text(json.dumps(document), "utf-8")
        with pytest.raises(BundleError) as caught:
            Bundle.open(path)
        return str(caught.value)

    return message


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda host: host.update(size=33), "embedding must be f32 [1, 33]"),
        (lambda host: host.update(size=0), "host.size is 0"),
        (lambda host: host.update(scores="max"), "host.scores is 'max', known: softmax, sigmoid"),
        (lambda host: host["text"].update(tokens=17), "must be f32 [1, 17, 48]"),
        (lambda host: host["text"].update(layers=3), "ends at 4, expected 5"),
        (lambda host: host["text"].update(pad_id=5000), "pad_id is 5000, outside"),
        (lambda host: host["text"].update(end_id=None), "host.text.end_id is null, and read"),
        (lambda host: host["text"].update(reads_end=False), "unknown input 'end'"),
        (lambda host: host.update(text=None), "stage is 'text'"),
        (lambda host: host["image"].update(fit="pad"), "host.image.fit is 'pad'"),
        (
            lambda host: host["image"].update(rows=2, fit="stretch"),
            "host.image has 3 views, expected one",
        ),
        (lambda host: host["text"]["embedding"].update(rows=1023), "host.embedding needs"),
    ],
)
def test_constants_that_do_not_fit_are_refused(refused, edit, message):
    assert message in refused(edit)


def test_no_code_asks_for_a_kind_by_name():
    """`kind == "vlm"` and its like: a kind is found by its files, never by a test of its name."""
    kinds = {path.stem for path in (ROOT / "edgevlm/bundle/kinds").glob("*.py")} - {"__init__"}
    found = []
    for folder in ("edgevlm", "exporters", "runtimes", "devices"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith(NAMED) or any(p.is_symlink() for p in path.parents):
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Compare | ast.MatchValue):
                    texts = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                    about = "kind" in ast.unparse(node).lower()
                    if about and kinds & {text for text in texts if isinstance(text, str)}:
                        found.append(f"{name}: {ast.unparse(node)}")
    assert kinds == {"vlm", "encoder"}
    assert not found
