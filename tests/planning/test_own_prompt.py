"""A plan asks the checkpoint's own processor for a prompt, and refuses where it writes another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import gcd

import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.errors import ModelError
from edgevlm.models.find import find
from edgevlm.models.processor import load_processor
from edgevlm.planning.own_prompt import compare_prompts
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe

CASES = [
    (name, options)
    for name in ("tiny-smolvlm", "tiny-idefics3", "tiny-llava-onevision", "tiny-llava-next")
    for options in ({}, {"tiles": (2, 2)}, {"tokens": 16}, {"frames": 4})
    if (name, options) != ("tiny-llava-next", {"frames": 4})  # it has no clips
]


def compared(made, layout=None):
    """The comparison of a plan, or of another layout."""
    checkpoint, image = made.checkpoint, made.plan.host.image
    width, height = image.columns * image.width, image.rows * image.height
    odd = 37 / gcd(width, height)  # a size that is no multiple of a tile
    return compare_prompts(
        made.description,
        load_processor(checkpoint, made.speller.own),
        checkpoint.family.processor_options(image),
        made.speller,
        layout or made.plan.host.layout,
        made.speller.bundled,
        Image.new("RGB", (int(width * odd), int(height * odd))),
    )


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_family_writes_the_processors_prompt(preset, name, options):
    folder = str(preset(name))
    found = compared(make_plan(Recipe(model=folder, **options), find(folder)))
    assert (found.equal, found.difference) == (1.0, "")
    assert found.image_tokens == found.expected_tokens > 0


def test_the_first_token_that_differs_is_named(tiny_model):
    made = make_plan(Recipe(model=tiny_model), find(tiny_model))
    layout = made.plan.host.layout
    first = replace(layout.prompt[0], ids=(1, 0, *layout.prompt[0].ids[2:]))
    found = compared(made, replace(layout, prompt=(first, *layout.prompt[1:])))
    assert found.equal == pytest.approx(3 / 5)  # the others begin with another item
    assert found.difference == (
        "the prompt differs from the checkpoint's processor: token 1 is '<|endoftext|>', and 'U' of"
        " its own"
    )


@pytest.mark.parametrize(
    ("file", "values", "line"),
    [
        ("processor_config.json", {"image_seq_len": 25},
         "the checkpoint's processor writes 25 tokens of '<image>' for an image of this grid, its"
         " model gives 64; mend processor_config.json"),
        ("config.json", {"image_token_id": 5},
         "'<image>' has id 1022, and config.json says image_token_id 5; mend the one that is"
         " wrong"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_contradicts_itself_is_refused(tiny_model, tmp_path, file, values, line):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    document = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(document | values))
    with pytest.raises(ModelError) as error:
        make_plan(Recipe(model=str(folder)), find(str(folder)))
    assert str(error.value) == f"'{folder}': {line}"


def test_ends_of_rows_that_go_with_their_tokens_are_no_difference(preset):
    """Where tokens are removed Mistral 3 has the end of the picture alone."""
    folder = str(preset("tiny-mistral3"))
    made = make_plan(Recipe(model=folder, size=(56, 84), tokens=3), find(folder))
    assert [item.kind for item in made.plan.host.layout.image] == ["visual", "ids"]
    whole = make_plan(Recipe(model=folder, size=(56, 84)), find(folder))
    visual, line, *rest = whole.plan.host.layout.image
    other = replace(line, ids=(line.ids[0] + 1,))
    picture = Image.new("RGB", (84, 56))
    layout = replace(whole.plan.host.layout, image=(visual, other, *rest))
    found = compare_prompts(
        whole.description,
        load_processor(whole.checkpoint, whole.speller.own),
        {},
        whole.speller,
        layout,
        whole.speller.bundled,
        picture,
    )
    assert found.equal == pytest.approx(2 / 5)  # those without a picture
    assert "the prompt differs from the checkpoint's processor: token" in found.difference
