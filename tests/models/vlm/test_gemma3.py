"""Gemma 3: its further turns, tables and refusals; the rest is in test_families.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

NAME = "tiny-gemma3"
QUESTION = "What is in this picture, and why?"


def test_further_turns_give_the_ids_of_the_whole_conversation(tiny, processor, prompt, photo):
    made = tiny(NAME)
    own, ours = processor(made.planned.checkpoint.folder), prompt(made)
    token = made.model.config.image_token_id
    messages = prompt.chat(QUESTION, images=1)
    messages += [{"role": "assistant", "content": [{"type": "text", "text": "A pot of flowers."}]}]
    messages += prompt.chat("Which colour?")
    text = own.apply_chat_template(messages, add_generation_prompt=True)
    whole = own(text=text, images=[photo(56, 56)], add_special_tokens=False).input_ids[0]
    reply = ours.tokenizer.encode("A pot of flowers.", add_special_tokens=False).ids
    first = ours.ids(QUESTION, 1, token)
    assert first + reply + ours.ids("Which colour?", 0, token, turn=True) == list(whole)


def test_blocks_take_the_tables_of_their_layers(preset):
    from edgevlm.models.find import find
    from edgevlm.planning.plan import make_plan

    path = str(preset(NAME))
    plan = make_plan(Recipe(model=path, block_size_bytes=1), find(path)).plan
    assert plan.host.layer_ropes == (0, 1, 0)
    taken = [
        [t.name for t in block.function("decode").inputs if t.name[:3] in ("cos", "sin")]
        for block in plan.stage("decoder")
    ]
    assert taken == [["cos", "sin"], ["cos_1", "sin_1"], ["cos", "sin"]]


@pytest.mark.parametrize(
    ("change", "processor", "options", "message"),
    [
        ({}, {}, {"frames": 4}, "^gemma3 does not support clips: got 4 frames, expected 1$"),
        ({}, {}, {"tiles": (2, 2)}, "^gemma3 reads a picture as one view: got tiles 2x2, expect"),
        ({}, {"do_pan_and_scan": True}, {}, "^the image processor has do_pan_and_scan true and cu"),
        ({"mm_tokens_per_image": 9}, {}, {}, "^8x8 patches do not divide into mm_tokens_per_image"),
        (
            {"vision_config": SimpleNamespace(model_type="clip_vision_model")},
            {},
            {},
            "^vision tower 'clip_vision_model' is not supported, expected siglip_vision_model$",
        ),
    ],
)
def test_what_the_static_form_has_not_is_refused(tiny, change, processor, options, message):
    checkpoint = tiny(NAME).planned.checkpoint
    config = SimpleNamespace(**{**checkpoint.config.__dict__, "model_type": "gemma3", **change})
    with pytest.raises(PlanError, match=message):
        checkpoint.family.describe(config, processor, Recipe(**options))


@pytest.mark.slow
def test_a_chat_with_pictures_reuses_what_it_can(preset, tmp_path, photo):
    """A prompt that shares the words before a picture, or all of a picture, answers as alone."""
    pytest.importorskip("onnxruntime")
    from edgevlm import api

    out = tmp_path / "tiny.edgevlm"
    api.export(Recipe(model=str(preset(NAME)), chunk=32, speculate=4), out)
    model, alone = api.load(out), api.load(out)
    flower, stream = photo(56, 56), photo(56, 56, "stream")
    for pictures in ([flower], [stream], [flower, stream], []):
        for question in (QUESTION, "What else?"):
            answer = model.generate(pictures, question, max_new_tokens=12)
            alone._loop.forget()
            expected = alone.generate(pictures, question, max_new_tokens=12)
            assert answer.token_ids == expected.token_ids
    drafted = model.generate([flower], QUESTION, max_new_tokens=24, draft="lookup")
    assert drafted.token_ids == model.generate([flower], QUESTION, max_new_tokens=24).token_ids
    assert model.chat("Which colour?", max_new_tokens=8).token_ids
