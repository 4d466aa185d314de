"""Methods of site `decoder` from recipe to bundle: parity, long answers, chats, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import torch
from PIL import Image

from edgevlm.bundle.files import Bundle
from edgevlm.errors import InputError, PlanError
from edgevlm.graphs.pruning import PrunedDecoderBlock
from edgevlm.models.find import find
from edgevlm.parity.vlm_expected import pruned_answer
from edgevlm.planning.plan import make_plan
from edgevlm.recipe import Recipe
from edgevlm.runtimes.loops.sequence import assemble
from edgevlm.runtimes.loops.text import TextLoop
from edgevlm.runtimes.on_onnxruntime.engine import Engine
from edgevlm.runtimes.residency.resident import ResidentBlocks

PICTURE = Image.linear_gradient("L").convert("RGB")
FAMILIES = ("tiny-smolvlm", "tiny-llava-onevision", "tiny-llava-next")
METHODS = (
    "fastv:tokens=5,layer=1",
    "pyramiddrop:1",
    "exit:1",
    "visiondrop:tokens=9,layers=1,contextual=0.3",
    "holitom@decoder:tokens=6,layer=1",
    "aim@decoder",
    "sparsevlm:tokens=6,layers=1",
    "mustdrop@decoder:tokens=7,layers=1",
    "dart:tokens=9,layer=1",
)


@pytest.fixture
def export_to(lowered_once, tmp_path):
    """`export_to(name, recipe)`: the bundle of this name."""
    return lambda name, recipe: lowered_once(recipe, tmp_path / name)


@pytest.fixture(scope="module")
def fastv(preset, lowered_once, tmp_path_factory):
    """A bundle that leaves 5 of 16 tokens after the first layer, with its verification.

    Nobody writes into it.
    """
    recipe = Recipe(
        model=str(preset("tiny-smolvlm")),
        tokens=16,
        methods=("strided", METHODS[0]),
        block_size_bytes=100_000,
    )
    return lowered_once(recipe, tmp_path_factory.mktemp("fastv") / "tiny.edgevlm")


def loop_over(bundle: Bundle) -> TextLoop:
    return TextLoop(bundle, ResidentBlocks(bundle.plan, Engine(bundle, threads=1)))


@pytest.mark.parametrize(
    ("family", "method"),
    [  # each method once, with the families in turn; the rest is slow
        pytest.param(family, method, marks=() if (i - j) % 3 == 0 else pytest.mark.slow)
        for i, family in enumerate(FAMILIES)
        for j, method in enumerate(METHODS)
    ],
)
def test_a_bundle_agrees_with_pytorch(request, preset, export_to, family, method):
    """One layer a block: rows, tables and indices go from block to block; 32 tokens of answer."""
    recipe = Recipe(
        model=str(preset(family)), tokens=16, methods=("strided", method), block_size_bytes=100_000
    )
    if (family, method) == (FAMILIES[0], METHODS[0]):
        done = request.getfixturevalue("fastv")
        assert done.bundle.plan.recipe == recipe
    else:
        done = export_to("tiny.edgevlm", recipe)
    parity, plan = done.verification, done.bundle.plan
    assert [site.site for site in plan.sites] == ["tokens", "decoder"]
    assert plan.host.visual_tokens == 16
    first, *_, last = plan.host.states.each
    assert last.rows < first.rows == plan.host.states.tokens
    assert parity.ok
    assert max(block.rel_error for block in parity.blocks) <= 1e-3
    assert parity.logits_rel_error <= 1e-3
    assert parity.tokens_equal == 1.0


def test_a_state_that_goes_from_block_to_block(with_layers, export_to):
    """One layer a block: key tokens of the encoder reach stages after blocks that leave all rows.

    The engine, given these bundles' own inputs by name, answers as PyTorch in one piece.
    """
    recipe = Recipe(
        model=str(with_layers("tiny-smolvlm", 4)),
        tokens=24,
        methods=("strided", "mustdrop@decoder:tokens=12+6,layers=2+3"),
        block_size_bytes=100_000,
    )
    done = export_to("tiny.edgevlm", recipe)
    plan = done.bundle.plan
    assert plan.host.carried == "vision"
    assert [t.name for t in plan.block("reduce-0").function("reduce").outputs][2] == "visual_signal"
    given = {b.name: set(b.function("prefill").links.values()) for b in plan.stage("decoder")}
    assert given["decoder-0"] == {"hidden", "carried"}
    assert "carried" in given["decoder-1"] & given["decoder-2"]  # the second stage has it too
    assert given["decoder-3"] == {"hidden"}
    assert done.verification.tokens_equal == 1.0
    assert max(block.rel_error for block in done.verification.blocks) <= 1e-3
    loop = loop_over(done.bundle)
    asked = loop.ask("What is this?", lambda: [loop.see([PICTURE])], max_new_tokens=4)
    assert asked.token_ids


@torch.no_grad()
def test_64_tokens_after_the_last_stage(fastv):
    """The loop's answer is that of all layers in PyTorch, caches, turned positions and all."""
    recipe, loop = fastv.bundle.plan.recipe, loop_over(fastv.bundle)
    visual = loop.see([PICTURE])
    answer = loop.ask("What is this?", lambda: [visual], max_new_tokens=64)
    checkpoint = find(recipe.model, None)
    planned = make_plan(recipe, checkpoint)
    piece = assemble(
        loop.plan,
        loop.plan.host.layout.prompt,
        loop.table,
        loop.tokenizer,
        "What is this?",
        [visual],
        0,
    )
    parts = planned.parts(checkpoint.load_model())
    steps = len(answer.token_ids)
    assert steps == 64 or answer.stopped == "stop"
    tokens, _ = pruned_answer(parts, loop.plan, piece, steps)
    assert answer.token_ids == tokens


@torch.no_grad()
def test_no_pruning_is_the_plain_decoder(preset):
    """A schedule that keeps all: the same rows as blocks without a method, prompt and steps."""
    checkpoint = find(str(preset("tiny-smolvlm")), None)
    recipe = Recipe(model=str(preset("tiny-smolvlm")), tokens=16)
    layers = len(make_plan(recipe, checkpoint).plan.stage("decoder")) and 2
    planned = make_plan(replace(recipe, methods=("strided", f"schedule:{layers}x16")), checkpoint)
    model = checkpoint.load_model()
    parts = planned.parts(model)
    block = PrunedDecoderBlock(parts.decoder.layers, parts.decoder.norm, 0, parts.pruning)
    host = planned.plan.host
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, host.chunk, host.embedding.columns, generator=generator)
    angles = torch.arange(host.chunk)[:, None] * torch.tensor(host.ropes[0].inverse_frequencies)
    angles = torch.cat([angles, angles], 1)[None]
    visual = torch.arange(3, 19, dtype=torch.int32)[None]
    past = [torch.zeros(shape) for state in host.states.each for shape in state.shapes]
    last = torch.tensor([host.chunk - 1], dtype=torch.int32)
    ours, *_ = block(hidden, angles.cos(), angles.sin(), visual, last, *past)
    theirs = parts.decoder.language_model(inputs_embeds=hidden).last_hidden_state[:, -1:]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_chats_and_long_prompts(fastv, exported):
    """A chat without a picture goes row by row; a prompt longer than the one call is refused."""
    loops = [loop_over(bundle) for bundle in (fastv.bundle, exported.bundle)]
    answers = [loop.ask("Hello, who are you?", max_new_tokens=12).token_ids for loop in loops]
    assert answers[0] == answers[1]
    loop = loops[0]
    loop.reset()
    assert loop.ask("What is this?", lambda: [loop.see([PICTURE])], max_new_tokens=4).token_ids
    assert loop.ask("And now?", max_new_tokens=4).token_ids
    loop.reset()
    chunk = loop.plan.host.chunk
    with pytest.raises(InputError, match=rf"this bundle takes at most {chunk} with an image"):
        loop.ask("word " * 90, lambda: [loop.see([PICTURE])])


def test_refusals(preset):
    """A layer that is not there, and a chunk that no prompt fits."""
    model = str(preset("tiny-smolvlm"))
    checkpoint = find(model, None)
    with pytest.raises(PlanError, match=r"^fastv: got layers \[9\], expected ascending numbers"):
        make_plan(Recipe(model=model, methods=("fastv:layer=9",)), checkpoint)
    with pytest.raises(PlanError, match=r"^chunk 8 is too short: with pruning in the decoder"):
        make_plan(Recipe(model=model, methods=("fastv:layer=1",), chunk=8), checkpoint)
