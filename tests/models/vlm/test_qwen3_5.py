"""Qwen3.5 and MiniCPM-V 4.6: a conversation through recurrent layers, and what is refused."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import InputError, PlanError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

QWEN, MINICPM = "tiny-qwen3-5", "tiny-minicpm-v-4-6"
QUESTION = "What is in this picture, and why?"
FURTHER = "And what is behind it?"
# Prompts are several calls, the last one filled up; blocks are of a layer or two.
OPTIONS = {"size": (64, 96), "chunk": 16, "block_size_bytes": 250_000}


@pytest.fixture(scope="module")
def done(preset, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from edgevlm.pipeline import export

    recipe = Recipe(model=str(preset(QWEN)), **OPTIONS)
    return export(recipe, tmp_path_factory.mktemp("qwen3_5") / "tiny.edgevlm")


@pytest.fixture
def made(tiny):
    return tiny(QWEN, **OPTIONS)


@pytest.fixture
def loaded(done):
    from edgevlm import api

    return api.load(done.bundle.path)


def greedy(made, inputs, further, tokens):
    """The answer of `generate` to a processor's inputs, with ids of words behind them."""
    inputs, more = dict(inputs), torch.tensor([further], dtype=torch.long)
    inputs["input_ids"] = ids = torch.cat((inputs["input_ids"], more), 1)
    inputs["attention_mask"] = torch.ones_like(ids)
    kinds = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.cat((kinds, torch.zeros_like(more).to(kinds.dtype)), 1)
    made.model.model.rope_deltas = None
    whole = made.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return whole[0, ids.shape[1] :].tolist()


def test_the_plan_has_a_state_a_layer(made):
    states = made.plan.host.states
    delta, attention = states.kinds
    assert states.layers == (0, 0, 0, 1)
    assert delta.shapes == ((1, 3, 160), (1, 4, 16, 24))
    assert attention.shapes == ((1, 2, states.tokens, 32),) * 2
    assert made.plan.host.rope.size == 8  # a quarter of a head turns
    assert made.plan.host.rope.sections == (2, 1, 1)


def test_a_conversation_is_that_of_transformers(done, made, loaded, processor, prompt, photo):
    """32 tokens of an answer, and those of a further turn behind it."""
    assert done.verification.ok
    picture = photo(96, 64)
    inputs = prompt.inputs(processor(made.planned.checkpoint.folder), QUESTION, [picture])
    first = loaded.generate(picture, QUESTION, max_new_tokens=32)
    assert list(first.token_ids) == greedy(made, inputs, [], 32)
    further = [*first.token_ids, *prompt(made).ids(FURTHER, 0, 0, turn=True)]
    second = loaded.chat(FURTHER, max_new_tokens=16)
    assert list(second.token_ids) == greedy(made, inputs, further, 16)


def test_a_further_turn_is_written_as_the_template_does(made, processor, prompt):
    """What follows a reply; the empty thought before it is in no later turn of the template."""
    own = processor(made.planned.checkpoint.folder)
    reply = [{"role": "assistant", "content": [{"type": "text", "text": "A pot."}]}]
    messages = [*prompt.chat(QUESTION), *reply, *prompt.chat(f"  {FURTHER} ")]
    text = own.apply_chat_template(messages, add_generation_prompt=True)
    written = own.tokenizer(text.partition("A pot.")[2]).input_ids
    assert prompt(made).ids(f"  {FURTHER} ", 0, 0, turn=True) == written


def test_a_new_conversation_begins_with_nothing_of_the_last(done, loaded, photo):
    from edgevlm import api

    for picture in (photo(96, 64), photo(96, 64), None):
        again = loaded.generate(picture, FURTHER, max_new_tokens=12)
        fresh = api.load(done.bundle.path).generate(picture, FURTHER, max_new_tokens=12)
        assert again.token_ids == fresh.token_ids


def test_drafts_are_refused(loaded, photo):
    with pytest.raises(InputError, match=r"^this model takes no --draft: what a wrong token does"):
        loaded.generate(photo(96, 64), QUESTION, draft="lookup")


@pytest.mark.slow
def test_a_memory_budget_gives_the_same_answer(done, loaded, photo):
    from edgevlm import api

    budget = api.load(done.bundle.path, memory="4GB")
    blocks = budget._loop.blocks
    blocks.set_budget(blocks.minimum_budget_bytes)  # blocks are loaded again for each token
    expected = loaded.generate(photo(96, 64), QUESTION, max_new_tokens=16)
    answer = budget.generate(photo(96, 64), QUESTION, max_new_tokens=16)
    assert answer.token_ids == expected.token_ids
    turn = budget.chat(FURTHER, max_new_tokens=8)
    assert turn.token_ids == loaded.chat(FURTHER, max_new_tokens=8).token_ids


REFUSED = {
    "speculate": (QWEN, {"speculate": 4}, r"^--speculate checks several tokens in one call"),
    "tiles": (QWEN, {"tiles": (1, 2)}, r"^this family cuts no tiles; leave out --tiles"),
    "size": (
        MINICPM,
        {"size": (112, 112)},
        r"^size 112x112 is none that the image processor makes .* it makes 224x224 of this shape",
    ),
    "signal": (
        MINICPM,
        {"tokens": 4, "methods": ("vflowopt:alpha=0.5",)},
        r"its patches are folded before its last layer",
    ),
}


@pytest.mark.parametrize(("name", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(preset, name, options, message):
    path = str(preset(name))
    with pytest.raises(PlanError, match=message):
        make_plan(Recipe(model=path, **options), find(path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer_types", ["sliding_attention"] * 4, "layer type 'sliding_attention' is not support"),
        ("linear_num_value_heads", 3, "3 value heads do not divide by 2 key heads"),
        ("linear_conv_kernel_dim", 1, "linear_conv_kernel_dim is 1, expected 2 or more"),
    ],
)
def test_layers_of_another_kind_are_refused(made, key, value, message):
    from edgevlm.models.shared.llama import decoder_spec

    text = copy.copy(made.planned.checkpoint.config.text_config)
    setattr(text, key, value)
    with pytest.raises(PlanError, match=message):
        decoder_spec(text)
