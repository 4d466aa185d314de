"""The plan of an encoder: what it holds, and what a recipe cannot ask of it."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("torch")

from edgevlm.errors import RecipeError
from edgevlm.models.find import find
from edgevlm.planning.plan import make_plan
from edgevlm.planning.sites.method_cost import method_cost
from edgevlm.recipe import Recipe


@pytest.fixture
def planned(preset):
    """A plan of a tiny model."""

    def make(name="tiny-siglip", **asked):
        return make_plan(Recipe(model=str(preset(name)), **asked), find(str(preset(name))))

    return make


def test_stages_shapes_and_ids(planned):
    plan = planned("tiny-clip", block_size_bytes=100_000).plan
    assert {block.stage for block in plan.blocks} == {"vision", "text"}
    assert plan.passes.keys() == {"vision", "text"}
    first, last = plan.stage("text")[0].functions[0], plan.stage("text")[-1].functions[0]
    assert [t.name for t in first.inputs] == ["hidden"]
    assert [t.name for t in last.inputs] == ["hidden", "end"]
    assert last.outputs[0].shape == (1, plan.host.size)
    assert (plan.host.text.pad_id, plan.host.text.end_id) == (1023, 1023)
    assert all(function.flops > 0 for block in plan.blocks for function in block.functions)


def test_a_last_token_needs_no_index(planned):
    text = planned("tiny-siglip").plan.stage("text")[0].functions[0]
    assert [t.name for t in text.inputs] == ["hidden"]


def test_bytes_are_those_of_the_scheme(planned):
    plain, rounded = planned().plan, planned(quantize="w8a8").plan
    assert rounded.weights_bytes < plain.weights_bytes / 2
    assert rounded.host.text.embedding.dtype != "f32"
    mixed = planned(quantize="none,text=w8a8").plan
    assert mixed.stage("vision")[0].weights_bytes == plain.stage("vision")[0].weights_bytes
    assert mixed.stage("text")[0].weights_bytes == rounded.stage("text")[0].weights_bytes


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tokens": 4}, "--tokens is for models with a language model"),
        ({"context": 64}, "--context is for"),
        ({"tiles": (2, 2)}, "--tiles is for"),
        ({"chunk": 8}, "--chunk is for"),
        ({"speculate": 4}, "--speculate is for"),
        ({"methods": ("divprune",)}, "has sites 'vision' and, of clips, 'input' alone$"),
        ({"methods": ("tome",)}, "add @vision"),
        ({"quantize": "decoder=w8a8"}, "available: vision, text, embed"),
        ({"quantize": "fp16,decoder=w4g32a16"}, "'decoder' is not a stage with weights"),
    ],
)
def test_what_a_language_model_alone_has_is_refused(planned, asked, message):
    with pytest.raises(RecipeError, match=message):
        planned(**asked)


def test_no_site_of_tokens_costs_nothing(planned):
    assert method_cost(planned()) is None


def test_padding_inside_the_tokenizer_does_not_count(preset, tmp_path):
    folder = shutil.copytree(preset("tiny-siglip"), tmp_path / "padded")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["padding"] = {
        "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert make_plan(Recipe(model=str(folder)), find(str(folder))).plan.host.text.end_id == 1
