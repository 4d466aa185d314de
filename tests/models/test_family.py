"""The family contract: what each file has, no sibling imports, and a file laid in is found."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevlm.models.family import token_ids  # noqa: E402
from edgevlm.registry import FAMILIES  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TOY = '''"""Toy: a family of no model."""

KIND, AUTO_CLASS = "vlm", "AutoModelForImageTextToText"
'''
# What `verify` compares with, by kind.
REFERENCES = {
    "vlm": ("reference_features",),
    "encoder": ("reference_image", "reference_text", "reference_logits"),
    "diffusion": ("reference_text", "reference_velocity", "reference_frames", "check", "complete"),
}

LIBRARIES = {"transformers", "diffusers"}


@pytest.mark.parametrize("name", FAMILIES.names())
def test_a_family_has_what_the_contract_names(name):
    family = FAMILIES.load(name)
    assert Path(family.__file__).parent.name == family.KIND
    assert importlib.util.find_spec(f"edgevlm.planning.{family.KIND}")
    if hasattr(family, "PIPELINE"):
        assert hasattr(pytest.importorskip("diffusers"), family.PIPELINE)
        assert {kind.partition(".")[0] for kind, _ in family.COMPONENTS.values()} <= LIBRARIES
    else:
        assert hasattr(transformers, family.AUTO_CLASS)
        assert callable(family.processor_views)
    references = REFERENCES[family.KIND][: None if getattr(family, "WORDS", True) else 1]
    for function in ("describe", "parts", *references):
        assert callable(getattr(family, function)), function


@pytest.mark.parametrize("name", FAMILIES.names())
def test_a_family_imports_no_other(name):
    tree = ast.parse(Path(FAMILIES.load(name).__file__).read_text("utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    allowed = ("edgevlm.models.documents", "edgevlm.models.family", "edgevlm.models.shared.")
    assert all(m.startswith(allowed) for m in modules if m.startswith("edgevlm.models"))


def test_a_file_laid_into_the_tree_is_listed(copied_tree, commands_of, tmp_path):
    copied_tree(tmp_path)
    (tmp_path / "edgevlm" / "models" / "vlm" / "toy.py").write_text(TOY)
    ((code, out, err),) = commands_of(tmp_path, ["models", "--json"])
    assert code == 0, err
    rows = {row["name"]: row["summary"] for row in json.loads(out.splitlines()[-1])}
    assert sorted(rows) == sorted([*FAMILIES.names(), "toy"])
    assert rows["toy"] == "Toy: a family of no model."


@pytest.mark.parametrize(
    ("value", "ids"), [(None, ()), (2, (2,)), ([7, 2, 7], (2, 7)), ([], ())], ids=str
)
def test_stop_ids_of_any_form(value, ids):
    assert token_ids(value) == ids


@pytest.mark.parametrize("value", [["</s>"], True, [2, -1], 2.0, {}], ids=str)
def test_stop_ids_that_are_no_numbers_are_refused(value):
    with pytest.raises(TypeError) as error:
        token_ids(value)
    assert str(error.value) == f"eos_token_id must be a number, got {value!r}"
