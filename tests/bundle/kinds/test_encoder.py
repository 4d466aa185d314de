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
        (lambda host: host["text"].update(end_id=10**400), "000..., outside the embedding table"),
        (lambda host: host["text"].update(end_id=None), "host.text.end_id is null, and read"),
        (lambda host: host["text"].update(reads_end=False), "unknown input 'end'"),
        (lambda host: host.update(text=None), "stage is 'text'"),
        (lambda host: host["image"].update(fit="pad"), "host.image.fit is 'pad'"),
        (
            lambda host: host["image"].update(rows=2, fit="stretch"),
            "host.image has 2 tiles, expected one view",
        ),
        (lambda host: host.update(scale=0), "host.scale is 0, expected 1e-06 to 1e+06"),
        (lambda host: host.update(scale=-3.5), "host.scale is -3.5, expected"),
        (lambda host: host.update(scale=1e308), "host.scale is 1e+308, expected"),
        (lambda host: host.update(bias=-1e7), "host.bias is -1e+07, expected at most 1e+06"),
        (lambda host: host["image"].update(mean=[1e308, 0, 0]), "host.image.mean is [1e+308, 0"),
        (lambda host: host["image"].update(std=[1, 1e-9, 1]), "host.image.std is [1.0, 1e-09"),
        (lambda host: host["text"]["embedding"].update(rows=1023), "host.embedding needs"),
    ],
)
def test_constants_that_do_not_fit_are_refused(refused, edit, message):
    assert message in refused(edit)


@pytest.mark.parametrize(
    "edit",
    [
        {"scale": 9.99},
        {"bias": 0.5},
        {"scores": "sigmoid"},
        {"text": {"lower_case": True}},
        {"text": {"pad_id": 5}},
        {"image": {"fit": "stretch"}},
    ],
    ids=str,
)
def test_constants_of_scores_are_those_of_the_checkpoint(embedder, tmp_path, edit):
    """`verify` makes the plan again, and every number of a score is part of the comparison."""
    pytest.importorskip("torch")
    from edgevlm.parity.verify import verify

    path = Path(shutil.copytree(embedder("tiny-clip").bundle.path, tmp_path / "copy.edgevlm"))
    document = json.loads((path / "manifest.json").read_text("utf-8"))
    for key, value in edit.items():
        merged = isinstance(value, dict)
        document["host"][key] = document["host"][key] | value if merged else value
    (path / "manifest.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(BundleError, match="was not made from its recipe"):
        verify(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["blocks"][0]["functions"][0].update(flops=10**400), "flops is 1000"),
        (lambda d: d["blocks"][0]["functions"][0].update(flops=-1), "flops is -1, expected 0 to"),
        (lambda d: d["requires"]["versions"].append(["a\nb", "1"]), "requires.versions must be"),
        (lambda d: d["requires"]["versions"].append(["a", "1" * 100]), "requires.versions must be"),
        (lambda d: d["requires"]["versions"].append(["ai.onnx", "9"]), "requires.versions must be"),
    ],
)
def test_numbers_of_blocks_and_requirements(embedder, tmp_path, edit, message):
    from edgevlm.bundle.files import Bundle

    path = Path(shutil.copytree(embedder("tiny-clip").bundle.path, tmp_path / "copy.edgevlm"))
    document = json.loads((path / "manifest.json").read_text("utf-8"))
    edit(document)
    (path / "manifest.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_factor_of_another_c_library_is_the_same(embedder):
    """The last digit of an exponential differs between them."""
    from dataclasses import replace
    from math import nextafter

    from edgevlm.bundle.kinds.encoder import outline

    host = embedder("tiny-clip").bundle.plan.host
    assert outline(replace(host, scale=nextafter(host.scale, 99))) == outline(host)
    assert outline(replace(host, scale=host.scale * 1.00001)) != outline(host)


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
    assert kinds == {"vlm", "encoder", "diffusion"}
    assert not found
