"""Gemma 4: its further turns, sizes, second table and shared caches; else test_families.py."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

NAME = "tiny-gemma4"
QUESTION = "What is in this picture, and why?"


@pytest.mark.parametrize("size", [(12, 30), (48, 48), (54, 36)])
def test_a_picture_of_any_grid_has_the_models_features(tiny, size):
    made = tiny(NAME, size=size)
    pixels = torch.rand(1, 3, *size).mul(2).sub(1).numpy()
    ours, theirs = made.features(pixels), made.reference_features(pixels)
    assert ours.shape[1] == size[0] * size[1] // 36
    assert difference(ours, theirs)[0] <= 1e-5


def test_blocks_behind_the_last_cache_take_single_rows_and_read_earlier_caches(tiny):
    plan = tiny(NAME).plan
    assert [state.source for state in plan.host.states.each] == [None, None, None, 2, 1]
    assert [state.head_size for state in plan.host.states.each] == [16, 32, 16, 16, 32]
    names = [[f.name for f in block.functions] for block in plan.stage("decoder")]
    assert names == [["prefill", "decode"], ["decode"]]
    caches = [block.function("decode").caches for block in plan.stage("decoder")]
    # No state of one block: layers 1 and 2 are read by others.
    assert [cache.name for cache in caches[0]] == ["key_0", "value_0", "", "", "", ""]
    assert [(cache.input, cache.output) for cache in caches[1]] == [
        ("past_key_0", ""), ("past_value_0", ""), ("past_key_1", ""), ("past_value_1", ""),
    ]  # fmt: skip


def test_each_layer_has_an_input_for_its_part_of_the_second_table(tiny):
    plan = tiny(NAME).plan
    table = plan.host.per_layer
    assert (table.table.rows, table.table.columns, table.visual_row) == (1024, 5 * 16, 0)
    inputs = {t.name: t.shape for t in plan.block("decoder-1").function("decode").inputs}
    assert inputs["embeds"] == (1, 1, 64)
    assert inputs["per_layer_0"] == inputs["per_layer_1"] == (1, 1, 16)


@pytest.mark.parametrize(
    ("scheme", "dtype", "row_bytes"),
    [("none", "f32", 320), ("fp16", "f16", 160), ("w8a16", "w8g64", 136), ("p4", "w4g32", 60)],
)
def test_core_ml_has_both_tables_in_the_bits_of_the_scheme(tiny, scheme, dtype, row_bytes):
    """80 columns: two groups of 64, or three of 32, with a scale each."""
    pytest.importorskip("coremltools")
    host = tiny(NAME, target="coreml", quantize=scheme).plan.host
    assert host.embedding.dtype == host.per_layer.table.dtype == dtype
    assert sum(host.per_layer.table.row_bytes) == row_bytes


def test_visual_tokens_have_the_row_of_padding_in_the_second_table(tiny, prompt):
    made = tiny(NAME)
    features = torch.randn(1, made.plan.host.visual_tokens, 64)
    rows = prompt(made).rows(QUESTION, [features])[0].numpy()
    own = made.model.model.language_model.get_per_layer_inputs(torch.zeros(1, 1, dtype=torch.long))
    visual = np.all(rows[:, None, :64] == features.numpy()[0][None], axis=-1).any(1)
    assert visual.sum() == made.plan.host.visual_tokens
    np.testing.assert_array_equal(rows[visual, 64:], np.tile(own.reshape(1, -1), (visual.sum(), 1)))


@pytest.mark.parametrize(("layers", "sources"), [(2, [None, None]), (4, [None, None, None, 2])])
def test_a_trial_has_the_first_layers_columns_of_the_second_table(
    tiny, decoder_difference, layers, sources
):
    whole, made = tiny(NAME), tiny(NAME, layers=layers)
    assert [state.source for state in made.plan.host.states.each] == sources
    assert made.plan.host.per_layer.table.columns == layers * 16
    own, all_layers = (m.planned.parts(m.model).layer_table for m in (made, whole))
    assert torch.equal(own[:], all_layers[:, : layers * 16])
    in_files = made.planned.checkpoint.load_model(0)
    assert torch.equal(made.planned.parts(in_files).layer_table[:], own[:])
    assert decoder_difference(made) <= 1e-5


@pytest.mark.parametrize(
    ("change", "processor", "options", "message"),
    [
        (
            {},
            {"max_soft_tokens": 60},
            {"frames": 4, "size": (48, 48)},
            "^size 48x48 makes 64 tokens of a picture, and the video processor at most 60; give a",
        ),
        ({}, {}, {"tiles": (2, 2)}, "^gemma4 reads a picture as one view: got tiles 2x2, expected"),
        (
            {},
            {},
            {"size": (48, 50)},
            "^size 48x50 has sides that are no multiples of 6 pixels; giv",
        ),
        (
            {},
            {},
            {"size": (96, 96)},
            "^size 96x96 makes 256 tokens of a picture, and the image pro",
        ),
        (
            {},
            {"patch_size": 16},
            {},
            "^the image processor's patch_size is 16, the encoder's 2; co",
        ),
        ({"vision_config": None}, {}, {}, "^this checkpoint reads no pictures: config.json has no"),
    ],
)
def test_what_the_static_form_has_not_is_refused(tiny, change, processor, options, message):
    checkpoint = tiny(NAME).planned.checkpoint
    config = SimpleNamespace(**{**checkpoint.config.__dict__, "model_type": "gemma4", **change})
    numbers = checkpoint.processor() | processor
    with pytest.raises(PlanError, match=message):
        checkpoint.family.describe(config, numbers, Recipe(**options))


@pytest.mark.slow
def test_chats_and_drafts_answer_as_alone(preset, tmp_path, photo):
    """Blocks without `prefill` follow the last call of a prompt, whatever it was."""
    pytest.importorskip("onnxruntime")
    from edgevlm import api

    out = tmp_path / "tiny.edgevlm"
    recipe = Recipe(model=str(preset(NAME)), chunk=72, speculate=4, block_size_bytes=150_000)
    api.export(recipe, out)
    model, alone = api.load(out), api.load(out)
    flower, stream = photo(48, 48), photo(48, 48, "stream")
    for pictures in ([flower], [stream], [flower, stream], []):
        for question in (QUESTION, "What else?"):
            answer = model.generate(pictures, question, max_new_tokens=12)
            alone._loop.forget()
            expected = alone.generate(pictures, question, max_new_tokens=12)
            assert answer.token_ids == expected.token_ids
    for draft in ("lookup", "skip=1"):
        drafted = model.generate([flower], QUESTION, max_new_tokens=24, draft=draft)
        plain = alone.generate([flower], QUESTION, max_new_tokens=24)
        assert drafted.token_ids == plain.token_ids
    assert model.chat("Which colour?", max_new_tokens=8).token_ids
