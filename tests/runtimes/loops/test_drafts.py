"""Speculative decoding: whatever a draft guesses, the answer is the one without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForImageTextToText

from edgevlm import api
from edgevlm.bundle.files import Bundle
from edgevlm.errors import BundleError, InputError, PlanError, RecipeError
from edgevlm.models.find import find
from edgevlm.pipeline import export
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.loops import drafts, images
from edgevlm.runtimes.loops.sampling import Sampling
from edgevlm.runtimes.loops.sequence import text_rows

ROOT = Path(__file__).resolve().parents[3]
FLOWER = images.load(ROOT / "edgevlm" / "photos" / "flower.jpg")
QUESTION = "What is in this picture?"
CHECK = 4


@pytest.fixture(scope="module")
def bundle(tiny_model, once):
    """A tiny model of five layers, each a block, with calls that check four tokens."""

    def write(folder):
        shutil.copytree(tiny_model, folder)
        config = AutoConfig.from_pretrained(folder)
        config.text_config.num_hidden_layers = 5
        torch.manual_seed(1)
        made = AutoModelForImageTextToText.from_config(config)
        made.save_pretrained(folder)
        (folder / "generation_config.json").write_text("{}")

    model = str(once("five-layers", write))
    recipe = Recipe(
        model, tokens=16, chunk=16, context=160, speculate=CHECK, block_size_bytes=100_000
    )
    return Bundle.open(once("five-layers.edgevlm", lambda out: export(recipe, out)))


@pytest.fixture(scope="module")
def loop(bundle):
    return load_loop(bundle.path, threads=1)


def answer(loop, draft=None, most=40, sampling=Sampling()):
    loop.reset()
    return loop.ask(QUESTION, lambda: [loop.see([FLOWER])], most, sampling, draft=draft)


def test_blocks_have_the_function_and_it_agrees_with_pytorch(bundle, loop):
    for block in bundle.plan.blocks:
        names = [function.name for function in block.functions]
        assert ("check" in names) == (block.stage in ("decoder", "head"))
    assert len(bundle.plan.stage("decoder")) == 5
    found = api.verify(bundle.path)
    checked = [block for block in found.blocks if block.function == "check"]
    assert len(checked) == 5 + len(bundle.plan.stage("head"))
    assert found.ok
    assert all(block.rel_error < 1e-4 for block in checked)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.2, 0.9, seed=5)])
@pytest.mark.parametrize("name", ["lookup", "skip=1", "skip=2", "skip=3"])
def test_a_draft_changes_no_token(loop, name, sampling):
    plain = answer(loop, sampling=sampling)
    found = answer(loop, drafts.parse(name, loop.plan), sampling=sampling)
    assert (found.token_ids, found.text) == (plain.token_ids, plain.text)
    assert found.accepted <= found.drafted
    if name.startswith("skip"):
        assert found.drafted > 0


@settings(max_examples=25, deadline=None)
@given(data=st.data(), most=st.integers(1, 60))
def test_whatever_is_guessed_the_answer_is_the_same(loop, data, most):
    plain = answer(loop, most=most)
    start = None

    def guess(_, ids, count):
        nonlocal start
        start = len(ids) if start is None else start
        right = list(plain.token_ids[1 + len(ids) - start :][:count])
        wrong = data.draw(st.integers(0, count))
        return [t if i < wrong else (t + 1) % 999 for i, t in enumerate(right)]

    found = answer(loop, guess, most=most)
    assert found.token_ids == plain.token_ids
    assert found.accepted <= found.drafted <= found.checks * (CHECK - 1)


def test_right_guesses_take_as_many_calls_less(loop):
    plain = answer(loop, most=33)
    start = []

    def guess(_, ids, count):
        start.append(len(ids))
        return list(plain.token_ids[1 + len(ids) - start[0] :][:count])

    found = answer(loop, guess, most=33)
    assert found.token_ids == plain.token_ids
    assert found.checks == 8  # 32 tokens after the first, four a call
    assert found.accepted == found.drafted == 24


def test_the_end_of_the_context_is_reached_by_single_tokens(loop):
    plain = answer(loop, most=10**6)
    assert plain.stopped == "context"
    found = answer(loop, drafts.lookup, most=10**6)
    assert found.token_ids == plain.token_ids
    assert loop.length == loop.plan.host.states.tokens


def test_a_draft_behind_a_system_text_and_among_pictures(loop):
    def ask(draft):
        loop.reset()
        visual = loop.see([FLOWER])
        parts = ["See: ", None, "\n", "and say: what is it?"]
        return loop.ask(parts, lambda: [visual], 30, draft=draft, system="Be brief.").token_ids

    assert ask(drafts.lookup) == ask(None)


def test_a_further_turn_after_a_draft(loop):
    def talk(draft):
        answer(loop, draft, most=20)
        return loop.ask("And why?", max_new_tokens=20, draft=draft).token_ids

    assert talk(drafts.lookup) == talk(None)


def test_few_rows_go_in_by_checks(loop):
    rows = np.array(loop.table[np.arange(19) * 7])
    loop.reset()
    assert loop._calls(0, 19, None) == [("prefill", 16), ("check", 3)]
    loop.prefill(text_rows(loop.plan, rows))
    together = loop.logits().copy()
    loop.reset()
    for i in range(19):
        loop.step("decode", rows[i : i + 1])
    np.testing.assert_allclose(loop.logits(), together, atol=1e-4 * np.abs(together).max())


def test_with_a_budget_every_step_is_a_check(bundle, loop):
    plain = answer(loop)
    small = load_loop(bundle.path, threads=1, memory="2GB")
    found = answer(small, drafts.lookup)
    assert found.token_ids == plain.token_ids
    assert found.checks + found.accepted + 1 == len(found.token_ids)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["coreml", "executorch"])
def test_other_targets_check_too(target, tiny_model, tmp_path):
    pytest.importorskip({"coreml": "coremltools"}.get(target, target))
    recipe = Recipe(tiny_model, target=target, tokens=16, chunk=16, context=96, speculate=CHECK)
    done = export(recipe, tmp_path / "m.edgevlm")
    assert done.verification.ok
    names = [(b.name, b.function) for b in done.verification.blocks if b.function == "check"]
    assert names == [("decoder-0", "check"), ("head-0", "check")]
    loop = load_loop(done.bundle.path, threads=1)
    plain, start = answer(loop, most=12), []

    def guess(_, ids, count):
        start.append(len(ids))
        return list(plain.token_ids[1 + len(ids) - start[0] :][:count])

    found = answer(loop, guess, most=12)
    assert found.token_ids == plain.token_ids
    assert found.accepted == found.drafted > 0


def test_look_up():
    def look(ids, most=3):
        return drafts.lookup(None, ids, most)

    assert look([1, 2, 3, 4, 1, 2]) == [3, 4, 1]
    assert look([1, 2, 3, 9, 2, 7, 1, 2]) == [3, 9, 2]  # two words before one
    assert look([5, 1, 5, 2, 5], most=1) == [2]  # the latest place
    assert look([1, 2, 3]) == look([1]) == look([]) == []
    assert look([1, -1, -1, 1]) == []  # what followed is a picture
    assert look([1, 2, -1, -1, 1]) == [2]
    assert look([1, 2, 1], most=0) == []


@pytest.mark.parametrize("text", ["", "look", "skip", "skip=", "skip=0", "skip=x", "skip=-1"])
def test_a_draft_that_is_none(loop, text):
    with pytest.raises(
        InputError, match=r"^a draft is lookup or skip=N with N blocks to skip, got '"
    ):
        drafts.parse(text, loop.plan)


def test_a_draft_needs_blocks_and_its_function(loop, exported):
    with pytest.raises(
        InputError, match=r"^skip=4 skips too many of 5 decoder blocks, expected at most skip=3;"
    ):
        drafts.parse("skip=4", loop.plan)
    other = load_loop(exported.bundle.path, threads=1)
    with pytest.raises(InputError, match=r"no 'check' function .* export it with --speculate 8$"):
        other.ask(QUESTION, lambda: [other.see([FLOWER])], 4, draft=drafts.lookup)


@pytest.mark.parametrize("value", [-1, 1, 65])
def test_numbers_of_tokens_that_cannot_be(value):
    with pytest.raises(RecipeError, match=rf"^speculate must be 0 or from 2 to 64, got {value}"):
        Recipe(speculate=value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 40}, "some more, expected 74 at least; give --context 74"),
        ({"methods": ("fastv:layer=1",)}, "leave out --speculate"),
    ],
)
def test_plans_that_have_no_room_for_it(tiny_model, options, message):
    recipe = Recipe(tiny_model, tokens=16, speculate=8, **options)
    with pytest.raises(PlanError, match=message):
        make_plan(recipe, find(tiny_model))


@pytest.mark.parametrize("value", [1, 3, 65, 2**40])
def test_a_manifest_with_other_rows_is_refused(bundle, tmp_path, value):
    copy = Path(shutil.copytree(bundle.path, tmp_path / "m.edgevlm"))
    document = json.loads((copy / "manifest.json").read_text("utf-8"))
    document["host"]["check"] = value
    (copy / "manifest.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(BundleError):
        api.load(copy)
