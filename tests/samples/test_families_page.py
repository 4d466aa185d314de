"""docs/families.md says what plans, records and transformers' list of types say now."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import families_page
from families_page import PAGE
from family_facts import types
from family_facts.plans import (
    LAYERS,
    TILES,
    Facts,
    facts,
    method_refusal,
    why_unasked,
    written,
)
from family_facts.records import Record, read_records
from family_facts.types import outcomes
from make_checkpoint import FAMILIES as SAMPLES

from edgevlm.registry import FAMILIES, METHODS

WRITE = "run python samples/families_page.py"
RECORD = Record("tiny-llava", "onnx", "w8a8", 12.5, 300.0, 40.0, 22.0, 9, 9, None, "2 cores", 2,
                "2026-11-30")  # fmt: skip


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text("utf-8")


def section(page, title):
    """The rows of the first table of a section, its heads first."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_each_family_and_each_method_is_there(page):
    named = {row[0] for row in section(page, "Sizes")[2:]}
    missing = [f for f in FAMILIES.names() if f in SAMPLES and f not in named]
    assert not missing, WRITE
    methods = {f"`{m}@{site}`" for m in METHODS.names() for site in METHODS.sites_of(m)}
    assert {row[0] for row in section(page, "Methods")[2:]} == methods, WRITE


def test_each_type_of_transformers_is_there(page):
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    rows = {row[0].strip("`"): row[1] for row in section(page, "Other types")[2:]}
    assert list(rows) == list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    families = {name for name, result in rows.items() if result == "family"}
    assert families == {*FAMILIES.names()} & {*rows}, WRITE


def test_the_measured_exports_are_those_of_the_records(page):
    assert families_page.measured(read_records()) in page, WRITE


@pytest.mark.parametrize(
    ("preset", "method", "site"),
    [("tiny-llava", "visionzip", "tokens"), ("tiny-llava", "hired", "tokens"),
     ("tiny-paligemma", "dart", "decoder"), ("tiny-qwen3-vl", "tome", "vision")],
)  # fmt: skip
def test_what_the_page_says_of_a_method_is_what_a_plan_says(page, tmp_path, preset, method, site):
    from make_checkpoint import PRESETS

    module = PRESETS[preset]
    tokenizer = module.tokenizer(module.PRESETS[preset])
    checkpoint = written(tmp_path / preset, preset, module, tokenizer)
    heads, _, *rows = section(page, "Methods")
    family = checkpoint.model_type
    (column,) = [i for i, names in enumerate(heads) if family in names.split(", ")]
    (cell,) = [row[column] for row in rows if row[0] == f"`{method}@{site}`"]
    reason = method_refusal(checkpoint, method, site)
    if reason in ("", TILES):
        assert cell == ("tiles" if reason else "yes"), WRITE
    else:
        assert f"\n{cell}. {reason}\n" in page, WRITE


def test_a_record_is_read_and_a_later_one_replaces_it(tmp_path):
    path = tmp_path / "families.jsonl"
    lines = [asdict(RECORD), asdict(RECORD) | {"seconds": 11.0}, asdict(RECORD) | {"tokens": 64}]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    whole, fewer = read_records(path)
    assert (whole.seconds, whole.tokens, fewer.tokens) == (11.0, None, 64)
    text = families_page.measured([whole])
    assert "| tiny-llava | `onnx` | `w8a8` | - | 11 | 300 | 40 | 22 | 9, 9 | - | 1 |" in text
    assert "1. 2 cores, 2 threads, 2026-11-30" in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seconds": 0}, "families.jsonl:1: tiny-llava: a measured number is above 0"),
        ({"date": "today"}, "got date 'today', expected YYYY-MM-DD"),
        ({"minutes": 3}, r"families.jsonl:1: unknown keys \['minutes'\]"),
    ],
)
def test_a_line_that_is_no_measurement_is_refused(tmp_path, change, reason):
    path = tmp_path / "families.jsonl"
    path.write_text(json.dumps(asdict(RECORD) | change))
    with pytest.raises(ValueError, match=reason):
        read_records(path)


@pytest.mark.slow
def test_the_page_is_what_the_script_writes(page, tmp_path):
    made = families_page.page(list(facts(tmp_path)), read_records(), outcomes())
    assert made == page, WRITE


def test_a_family_that_could_not_be_asked_has_its_column_and_the_reason():
    reason = why_unasked("'/tmp/x/tiny-fast-vlm': fast_vlm needs timm, which is not there; pip")
    assert reason == "not asked: fast_vlm needs timm, which is not there"
    asked = Facts("llava", "vlm", "tiny-llava", (), {"a@tokens": "", "b@decoder": LAYERS}, {})
    unasked = Facts("fast_vlm", "vlm", "tiny-fast-vlm", (), {}, {}, reason)
    text = families_page.methods([unasked, asked])
    assert "| method | fast_vlm | llava |\n" in text
    assert "| `a@tokens` | 1 | yes |\n| `b@decoder` | 1 | layers |\n" in text
    assert text.endswith(f"\n1. {reason}\n")


@pytest.mark.parametrize(
    ("method", "answer"),
    [("fastv", LAYERS), ("pyramiddrop", ""), ("aim", "lets tokens leave from layer 3 on by the")],
)
def test_over_recurrent_layers_other_layers_are_tried(tmp_path, method, answer):
    from make_checkpoint import PRESETS

    module = PRESETS["tiny-lfm2-vl"]
    tokenizer = module.tokenizer(module.PRESETS["tiny-lfm2-vl"])
    checkpoint = written(tmp_path / "lfm2", "tiny-lfm2-vl", module, tokenizer)
    found = method_refusal(checkpoint, method, "decoder")
    assert found == answer if answer in ("", LAYERS) else answer in found


@pytest.mark.parametrize("cause", [ValueError("not enough values to unpack"), KeyError("depth")])
def test_what_a_type_raises_is_no_reason(monkeypatch, cause):
    def check(config):
        raise cause

    monkeypatch.setattr(types, "CHECKS", {"encoder": check})
    outcome = types._outcome("idefics2")
    assert (outcome.result, outcome.reason) == ("refused", "its default config makes no encoder")
