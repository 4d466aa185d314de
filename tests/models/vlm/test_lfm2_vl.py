"""LFM2-VL: what recurrent layers make of a conversation, by one bundle of many small blocks.

Its processor for pictures needs torchvision, which does not exist for every torch: tests of it are
skipped where it is missing. The text is its own in any case.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import InputError, PlanError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.processor import load_processor, missing_library  # noqa: E402
from edgevlm.models.shared.encoders.naflex import packed  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

PRESET = "tiny-lfm2-vl"
QUESTION = "What is in this picture, and why?"
FURTHER = "And what is behind it?"
# Chunks of 16 rows fill up; blocks of one layer are convolutions alone, or attention alone.
OPTIONS = {"chunk": 16, "block_size_bytes": 250_000}
HERE = importlib.util.find_spec("torchvision") is not None
NEEDS = pytest.mark.skipif(not HERE, reason="its image processor needs torchvision")


@pytest.fixture(scope="module")
def done(preset, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from edgevlm.pipeline import export

    recipe = Recipe(model=str(preset(PRESET)), **OPTIONS)
    return export(recipe, tmp_path_factory.mktemp("lfm2") / "tiny.edgevlm")


@pytest.fixture
def made(tiny):
    return tiny(PRESET, **OPTIONS)


@pytest.fixture
def loaded(done):
    from edgevlm import api

    return api.load(done.bundle.path)


@pytest.fixture
def own(made):
    """Its processor; without torchvision a stand-in takes the image processor's place."""
    checkpoint = made.planned.checkpoint
    return load_processor(checkpoint, made.planned.speller.own)


@pytest.fixture
def processor_of():
    """`processor_of(made)`: the processor, and its options for the grid of a recipe."""

    def load(made):
        checkpoint = made.planned.checkpoint
        options = checkpoint.family.processor_options(made.plan.host.image)
        own = load_processor(checkpoint, made.planned.speller.own)
        for name, value in options.items():  # a stand-in is asked by its attributes
            setattr(own.image_processor, name, value)
        return own, options

    return load


def greedy(made, ids, pictures, tokens):
    """The answer of `generate` to ids, about pictures at the size of the encoder."""
    pixels = np.concatenate([made.views(picture) for picture in pictures])
    inputs = packed(torch.from_numpy(pixels), made.model.config.vision_config.patch_size)
    ids = torch.tensor([ids])
    whole = made.model.generate(input_ids=ids, **inputs, max_new_tokens=tokens, do_sample=False)
    return whole[0, ids.shape[1] :].tolist()


def test_the_plan_has_a_state_a_layer(made):
    states = made.plan.host.states
    convolution, attention = states.kinds
    assert states.layers == (0, 1, 0, 1)
    assert (convolution.kind, convolution.shapes) == ("recurrent", ((1, 2, 64),))
    assert attention.shapes == ((1, 2, states.tokens, 16),) * 2
    assert states.bytes == 2 * (4 * 2 * 64) + 2 * (2 * 4 * 2 * states.tokens * 16)
    assert states.row_bytes == 2 * (2 * 4 * 2 * 16)


def test_a_bundle_agrees_with_pytorch(done):
    verification = done.verification
    assert verification.ok
    assert verification.tokens_equal == 1.0
    unasked = [check.text for check in verification.checks if check.text]
    assert (not unasked) == HERE
    assert all("image processor needs 'torchvision'" in text for text in unasked)


def test_a_chunk_knows_how_many_of_its_rows_count(done):
    """A block of convolutions takes `count` for several rows, and none for one."""
    plan = done.bundle.plan
    assert len(plan.stage("decoder")) == 4
    for block, recurrent in zip(plan.stage("decoder"), (True, False, True, False), strict=True):
        names = {f.name: [t.name for t in f.inputs] for f in block.functions}
        assert ("count" in names["prefill"]) == recurrent
        assert "count" not in names["decode"]


def test_a_conversation_is_that_of_transformers(made, loaded, own, prompt, photo):
    """32 tokens of an answer, and those of a further turn behind it."""
    picture = photo(64, 64)
    ids = prompt.inputs(own, QUESTION, [picture]).input_ids[0].tolist()
    first = loaded.generate(picture, QUESTION, max_new_tokens=32)
    assert list(first.token_ids) == greedy(made, ids, [picture], 32)
    ids += [*first.token_ids]
    ids += prompt(made).ids(FURTHER, 0, 0, turn=True)
    second = loaded.chat(FURTHER, max_new_tokens=16)
    assert list(second.token_ids) == greedy(made, ids, [picture], 16)


def test_a_new_conversation_begins_with_nothing_of_the_last(done, loaded, photo):
    """The same picture again, and no picture: no row of the cache is taken over."""
    from edgevlm import api

    pictures = [photo(64, 64), photo(64, 64), None]
    for picture in pictures:
        again = loaded.generate(picture, FURTHER, max_new_tokens=12)
        fresh = api.load(done.bundle.path).generate(picture, FURTHER, max_new_tokens=12)
        assert again.token_ids == fresh.token_ids
        assert again.prompt_tokens == fresh.prompt_tokens
    loop = loaded._loop
    assert loop.length > 0
    assert any(np.abs(array).max() > 0 for array in loop.arrays.recurrent)
    loop.reset()
    assert all(np.abs(array).max() == 0 for array in loop.arrays.recurrent)


def test_an_interrupted_call_ends_the_conversation(loaded, photo, monkeypatch):
    """Rows that went through some layers and not through others cannot be taken back."""
    expected = loaded.generate(photo(64, 64), QUESTION, max_new_tokens=8).token_ids
    run, blocks, runs = loaded._loop.blocks.run, loaded._loop.blocks, []

    def interrupted(block, function):
        runs.append(block)
        if runs.count("decoder-1") == 4:
            raise KeyboardInterrupt
        run(block, function)

    monkeypatch.setattr(blocks, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loaded.generate(photo(64, 64), QUESTION, max_new_tokens=8)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"^the last answer was interrupted, and the layers of"):
        loaded.chat(FURTHER)
    assert loaded.generate(photo(64, 64), QUESTION, max_new_tokens=8).token_ids == expected


def test_drafts_are_refused(loaded, photo):
    with pytest.raises(InputError, match=r"^this model takes no --draft: what a wrong token does"):
        loaded.generate(photo(64, 64), QUESTION, draft="lookup")


REFUSED = {
    "speculate": ({"speculate": 4}, r"^--speculate checks several tokens in one call and takes"),
    "calibrate": (
        {"tokens": 8, "methods": ("visionzip:calibrate=size",)},
        r"^calibrate=size weighs tokens in attention, and this model has layers without",
    ),
    "layer": (
        {"methods": ("fastv@decoder:tokens=8,layer=1",)},
        r"leave from layer 1 on by the attention of the layer before, which .*; give layer 2 where",
    ),
    "layer that comes next": (
        {"methods": ("pyramiddrop@decoder:layers=2",)},
        r"leave from layer 2 on by the attention of that layer, which .*; give layer 1, 3 where",
    ),
    "tiles": (
        {"tiles": (1, 2)},
        r"^tiles 1x2: the image processor cuts 2 to 10 tiles, .* give 2x2",
    ),
    "many tiles": ({"tiles": (4, 4)}, r"^tiles 4x4: .* rows as columns; give 3x3$"),
    "size of tiles": (
        {"tiles": (2, 2), "size": (32, 32)},
        r"^tiles 2x2: .* tiles of 64x64 pixels and a thumbnail of 64x64, got a size of 32x32",
    ),
    "frames": ({"frames": 2}, r"^lfm2_vl does not support clips: got 2 frames"),
    "odd size": ({"size": (60, 64)}, r"^size 60x64 is none that the image processor makes: sides"),
    "large size": ({"size": (64, 128)}, r"picture has 16 to 64 tokens of 8x8; give such as 64x64$"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(preset, options, message):
    path = str(preset(PRESET))
    with pytest.raises(PlanError, match=message):
        make_plan(Recipe(model=path, **options), find(path))


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("tiles", [1, 2])
def test_a_prompt_is_that_of_its_processor(tiny, processor_of, prompt, photo, tiles, images):
    """Ids by the processor, scores by the model, of a first turn."""
    made = tiny(PRESET, tiles=(tiles, tiles), **OPTIONS)
    own, options = processor_of(made)
    side = 64 * tiles
    pictures = [photo(side, side), photo(side, side, "stream")][:images]
    inputs, ours = prompt.inputs(own, QUESTION, pictures, **options), prompt(made)
    ids = inputs.input_ids[0].tolist()
    assert ours.ids(QUESTION, images, made.model.config.image_token_id) == ids
    views = [made.views(picture) for picture in pictures]
    given = {}
    if views:
        size = made.model.config.vision_config.patch_size
        given = packed(torch.from_numpy(np.concatenate(views)), size)
        theirs = inputs.get("pixel_values", given["pixel_values"])
        # torch resizes tiles and thumbnail in floats, PIL in 8 bit.
        limit = {"rtol": 0, "atol": 1e-6 if tiles == 1 else 0.02}
        torch.testing.assert_close(given["pixel_values"], theirs, **limit)
    rows = ours.rows(QUESTION, [made.features(view) for view in views])
    theirs = made.model(input_ids=inputs.input_ids, **given).logits
    assert difference(ours.logits(rows), theirs)[0] <= 1e-5


@NEEDS
@pytest.mark.parametrize("side", [128, 131, 112])
def test_tiles_are_those_that_the_processor_chooses(tiny, processor_of, prompt, photo, side):
    """Of square pictures of these sizes, without being told."""
    made = tiny(PRESET, tiles=(2, 2))
    own = load_processor(made.planned.checkpoint, made.planned.speller.own)
    inputs = prompt.inputs(own, QUESTION, [photo(side, side)])
    assert len(inputs.spatial_shapes) == 5
    ids = prompt(made).ids(QUESTION, 1, made.model.config.image_token_id)
    assert ids == inputs.input_ids[0].tolist()


def test_another_grid_has_its_own_positions(tiny):
    """A table of 7x7 positions, interpolated to 6x14 patches."""
    made = tiny(PRESET, size=(24, 56), tokens=10)
    pixels = torch.rand(1, 3, 24, 56).mul(2).sub(1).numpy()
    ours, theirs = made.features(pixels), made.reference_features(pixels)
    assert tuple(ours.shape) == (1, 21, 64)
    assert difference(ours, theirs)[0] <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "executorch", "coreml"])
def test_tokens_leave_between_convolutions(preset, tmp_path, target):
    """By the attention of layer 1, behind which is a convolution; then convolutions see fewer."""
    from edgevlm.pipeline import export

    method = ("dart@decoder:tokens=32,layer=2",)
    recipe = Recipe(model=str(preset(PRESET)), target=target, methods=method)
    done = export(recipe, tmp_path / "tiny.edgevlm")
    assert done.verification.ok
    assert [state.rows for state in done.bundle.plan.host.states.each if state.rows] != []


@pytest.mark.slow
def test_a_memory_budget_gives_the_same_answer(done, loaded, photo):
    from edgevlm import api

    budget = api.load(done.bundle.path, memory="4GB")
    blocks = budget._loop.blocks
    blocks.set_budget(blocks.minimum_budget_bytes)  # blocks are loaded again for each token
    for question in (QUESTION, FURTHER):
        expected = loaded.generate(photo(64, 64), question, max_new_tokens=16)
        answer = budget.generate(photo(64, 64), question, max_new_tokens=16)
        assert answer.token_ids == expected.token_ids
    turn = budget.chat(FURTHER, max_new_tokens=8)
    assert turn.token_ids == loaded.chat(FURTHER, max_new_tokens=8).token_ids
    assert turn.loads > 2 * len(done.bundle.plan.blocks)


def test_a_plan_says_that_its_processor_was_not_asked(made):
    notes = [note for note in made.planned.notes if "torchvision" in note]
    assert len(notes) == (missing_library(made.planned.checkpoint) != "")


@NEEDS
def test_the_library_is_there(made):
    assert missing_library(made.planned.checkpoint) == ""
