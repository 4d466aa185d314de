"""The plan's numbers are the model's, and what cannot work is refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgevlm.errors import ModelError, PlanError, RecipeError  # noqa: E402
from edgevlm.graphs.blocks import build  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402


@pytest.fixture
def planned(tiny_model):
    """A recipe with its plan; the model is the tiny SmolVLM, if no other is named."""

    def make(model=tiny_model, **options):
        return make_plan(Recipe(model=model, **options), find(model))

    return make


@pytest.fixture
def llava(preset):
    """Folder of a tiny LLaVA-OneVision."""
    return str(preset("tiny-llava-onevision"))


def bytes_of(tensors):
    """Each tensor once, however often it is named."""
    return 4 * sum({id(t): t.numel() for t in tensors}.values())


def test_bytes_are_the_models_with_a_tied_table_once(planned):
    made = planned()
    model = made.checkpoint.load_model()
    assert model.lm_head.weight is model.model.text_model.embed_tokens.weight
    assert {b.shares for b in made.plan.stage("head")} == {"embedding"}
    assert made.plan.weights_bytes == bytes_of(model.parameters())


@pytest.mark.parametrize("target", ["coreml", "executorch"])
def test_a_tied_head_counts_beside_the_table_where_it_is_written_again(target, planned):
    shared, plan = planned().plan, planned(target=target).plan
    assert {b.shares for b in plan.stage("head")} == {""}
    assert plan.weights_bytes == shared.weights_bytes + shared.host.embedding.bytes


def test_bytes_of_each_block_are_those_of_its_module(planned):
    made = planned(block_size_bytes=200_000)
    model = made.checkpoint.load_model()
    parts = made.checkpoint.family.parts(model, made.description)
    for block in made.plan.blocks:
        module = build(block, parts, made.method, made.description.shape)
        tensors = [*module.parameters(), *module.buffers()]
        assert block.weights_bytes == bytes_of(tensors), block.name


def test_bytes_of_a_family_that_leaves_weights_unused(planned, llava):
    made = planned(llava, frames=2)
    model = made.checkpoint.load_model()
    unused = bytes_of(model.model.vision_tower.post_layernorm.parameters())
    side = 56 // 4
    pool = 4 * side**2 * (side // 2) ** 2
    assert made.plan.weights_bytes == bytes_of(model.parameters()) - unused + pool


def test_blocks_cover_every_module_within_the_block_size(planned):
    limit = 200_000
    made = planned(block_size_bytes=limit)
    for stage, end in {"vision": 4, "decoder": 2, "head": 1024}.items():
        blocks = made.plan.stage(stage)
        ranges = [b.span for b in blocks]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == end
        assert [r[1] for r in ranges[:-1]] == [r[0] for r in ranges[1:]]
        for block in blocks:
            assert block.weights_bytes <= limit or block.span[1] - block.span[0] == 1
    assert len(made.plan.stage("head")) == 2


def test_flops_are_two_per_multiply_add(planned):
    made = planned(chunk=16)
    text, host = made.checkpoint.config.text_config, made.plan.host
    channels, size, heads, groups = text.hidden_size, 16, 4, 2
    linear = channels * (heads + 2 * groups) * size + heads * size * channels
    linear += 3 * channels * text.intermediate_size
    layers = text.num_hidden_layers
    (decoder,) = made.plan.stage("decoder")
    for name, rows in (("prefill", 16), ("decode", 1)):
        attention = 2 * rows * host.states.tokens * heads * size
        assert decoder.function(name).flops == layers * 2 * (rows * linear + attention)
    (head,) = made.plan.stage("head")
    assert head.function("logits").flops == 2 * channels * text.vocab_size
    (reduce,) = made.plan.stage("reduce")
    assert reduce.function("reduce").flops == 0


def test_flops_of_the_encoder(planned):
    made = planned()
    vision = made.checkpoint.config.vision_config
    patches, width = (vision.image_size // vision.patch_size) ** 2, vision.hidden_size
    embed = patches * width * 3 * vision.patch_size**2
    layer = patches * (4 * width**2 + 2 * width * vision.intermediate_size)
    layer += 2 * patches**2 * width
    project = (patches // 4) * (4 * width) * made.plan.host.embedding.columns
    (block,) = made.plan.stage("vision")
    expected = 2 * (embed + vision.num_hidden_layers * layer + project)
    assert block.function("encode").flops == expected


def test_flops_do_not_depend_on_how_blocks_are_cut(planned):
    def total(made):
        return sum(f.flops for b in made.plan.blocks for f in b.functions)

    assert total(planned(chunk=16)) == total(planned(chunk=16, block_size_bytes=100_000))


def test_kv_bytes_are_those_of_the_caches_inputs(planned):
    made = planned(context=300)
    states = made.plan.host.states
    assert [state.shapes[0] for state in states.each] == [(1, 2, states.tokens, 16)] * 2
    assert states.bytes == 2 * 2 * 2 * states.tokens * 16 * 4
    assert states.row_bytes * states.tokens == states.bytes
    cache = [
        4 * torch.Size(t.shape).numel()
        for b in made.plan.stage("decoder")
        for t in b.function("decode").inputs
        if t.name.startswith("past_")
    ]
    assert sum(cache) == states.bytes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokens": 16},
        {"chunk": 7, "context": 200},
        {"tiles": (2, 2)},
        {"context": 201},
    ],
)
def test_the_chunk_divides_the_context_and_the_prompt_fits(planned, options):
    made = planned(**options)
    host = made.plan.host
    assert host.states.tokens % host.chunk == 0
    assert host.states.tokens > made.plan.host.prompt_tokens
    assert host.states.tokens >= options.get("context", 0)
    if "chunk" in options:
        assert host.chunk == options["chunk"]


def test_the_context_stays_within_the_models_positions(planned):
    made = planned(context=8190, chunk=100)
    most = made.checkpoint.config.text_config.max_position_embeddings
    assert made.plan.host.states.tokens <= most


def test_visual_tokens_and_sequence_follow_the_budget(planned):
    whole, half = planned(), planned(tokens=32)
    assert (whole.plan.host.visual_tokens, half.plan.host.visual_tokens) == (64, 32)
    assert whole.plan.host.prompt_tokens - half.plan.host.prompt_tokens == 32
    assert whole.plan.sites[0].method == "identity"
    assert half.plan.sites[0].method == "divprune"
    assert half.plan.stage("reduce")[0].function("reduce").outputs[0].shape == (1, 32, 64)


def test_newline_rows_follow_the_vocabulary(planned, llava):
    made = planned(llava, tiles=(2, 2))
    host = made.plan.host
    assert host.embedding.rows == host.vocabulary + 1
    rows = [i for p in made.plan.host.layout.image if p.kind == "ids" for i in p.ids]
    assert rows == [host.vocabulary] * 28
    reduced = planned(llava, tiles=(2, 2), tokens=100)
    rows = [i for p in reduced.plan.host.layout.image if p.kind == "ids" for i in p.ids]
    assert rows == [host.vocabulary]


def test_the_same_recipe_gives_the_same_plan(planned):
    assert planned(tokens=16).plan == planned(tokens=16).plan


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"context": 50},
            PlanError,
            r"^context 50 is too short: one image and the chat format take 80 tokens, expected 82"
            r" at least; give --context 82 or fewer --tokens$",
        ),
        (
            {"context": 9000},
            PlanError,
            "^context 9000 is more than the model's 8192 positions; give --context 8192 or less$",
        ),
        ({"tokens": 65}, PlanError, r"divprune: .*65.*64"),
        ({"tokens": 65, "methods": ("tome",)}, PlanError, r"tome: .*65.*64"),
        ({"tokens": 8, "methods": ("identity",)}, PlanError, "identity keeps all of them"),
        (
            {"methods": ("tome:q=2",)},
            RecipeError,
            "^method 'tome' has no option 'q'; available: r, positions, merge, calibrate$",
        ),
        (
            {"methods": ("divprune:r=2",)},
            RecipeError,
            "^method 'divprune' has no option 'r'; available: groups, positions, merge, calibrate$",
        ),
        ({"methods": ("tome:r=0",)}, RecipeError, "^method 'tome': r is the most tokens merged"),
        (
            {"methods": ("tome:r=x",)},
            RecipeError,
            "^method 'tome': got r=x, expected a whole number$",
        ),
        (
            {"methods": ("random:seed=1.5",)},
            RecipeError,
            "^method 'random': got seed=1.5, expected a whole number$",
        ),
        (
            {"methods": ("vflowopt:t=x",)},
            RecipeError,
            "^method 'vflowopt': got t=x, expected a number$",
        ),
        (
            {"methods": ("aim@decoder:args=1",)},
            RecipeError,
            "^method 'aim' has no option 'args'; available: none$",
        ),
        (
            {"methods": ("schedule",)},
            RecipeError,
            "^method 'schedule' needs the option 'stages', as in schedule@decoder:stages=…$",
        ),
        (
            {"methods": ("dymu",)},
            RecipeError,
            "^method 'dymu' needs the option 'merges', as in dymu@vision:merges=…; `edgevlm"
            " calibrate dymu` finds it on pictures$",
        ),
        (
            {"methods": ("tome", "random")},
            RecipeError,
            "^site 'tokens' has two methods: 'tome' and 'random'",
        ),
        (
            {"methods": ("tome@input",)},
            RecipeError,
            "^method 'tome' works at site 'tokens' and 'vision', not 'input'$",
        ),
        ({"methods": ("tme",)}, RecipeError, "^unknown method 'tme'; did you mean 'tome'[?] known"),
        (
            {"methods": ("tome:positions=none",)},
            RecipeError,
            "^positions must be 'contiguous' or 'original' or 'median', got 'none'$",
        ),
        ({"target": "onx"}, RecipeError, "^unknown target 'onx'; did you mean 'onnx'[?]"),
        (
            {"quantize": "none,heat=none"},
            RecipeError,
            "^'heat' is not a stage with weights; available: vision, embed, decoder, head$",
        ),
        (
            {"quantize": "p4"},
            RecipeError,
            "^target 'onnx' does not support scheme 'p4'; available: none, fp16, w8a32, ",
        ),
    ],
)
def test_what_cannot_work_is_refused(planned, options, error, message):
    with pytest.raises(error, match=message) as caught:
        planned(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        ((7, 1), r"^tiles 7x1 is not a grid of the model, expected one of \[\(1, 1\), "),
        ((4, 4), "^tiles 4x4 is more than this model's 9 tiles$"),
    ],
)
def test_a_grid_that_the_model_has_not_is_refused(planned, llava, tiles, message):
    with pytest.raises(PlanError, match=message):
        planned(llava, tiles=tiles)


def test_a_grid_whose_markers_are_no_tokens_is_refused(planned):
    with pytest.raises(PlanError, match=r"^tiles 7x1 is more than this model's 6x6 markers$"):
        planned(tiles=(7, 1))


def test_a_rotary_scaling_that_follows_the_length_is_refused(tiny_model):
    checkpoint = find(tiny_model)
    config = checkpoint.config
    config.text_config.rope_parameters = {
        "rope_type": "dynamic",
        "factor": 2.0,
        "rope_theta": 1e5,
    }
    with pytest.raises(PlanError, match=r"^rotary scaling 'dynamic' changes with the length"):
        make_plan(Recipe(), replace(checkpoint, config=config))


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": [5, 3]}, (3, 5)),
        ({"eos_token_id": 4}, (4,)),
        ({}, ()),
        (None, (9,)),
    ],
    ids=["several", "one", "none", "no file"],
)
def test_an_answer_ends_where_the_generation_config_says(
    tiny_model, tmp_path, generation, expected
):
    """Without it, where the config of the language model says."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    made = make_plan(Recipe(model=str(folder)), find(str(folder)))
    assert made.plan.host.stop_ids == expected


def test_an_end_that_is_no_number_is_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": "end"}))
    expected = "generation_config.json: eos_token_id must be a number, got 'end'$"
    with pytest.raises(ModelError, match=expected):
        make_plan(Recipe(model=str(folder)), find(str(folder)))


def test_numbers_of_the_description_are_those_of_the_models_modules(planned, preset):
    for name in ("tiny-smolvlm", "tiny-llava-onevision", "tiny-llava-next"):
        made = planned(str(preset(name)))
        parts = made.parts(made.checkpoint.empty_model())
        encoder, decoder = made.description.encoder, made.description.decoder
        position = parts.encoder.embedding.position.weight
        assert (encoder.tokens, encoder.width) == tuple(position.shape)
        assert encoder.layers == len(parts.encoder.layers)
        layer = parts.encoder.layers[0]
        assert (encoder.heads, encoder.head_size) == (layer.heads, layer.head_size)
        assert decoder.width == parts.head.shape[1]
        for cache, layer in zip(decoder.caches, parts.decoder.layers, strict=True):
            keys = layer.layer.self_attn.k_proj.weight.shape[0]
            assert cache.heads * cache.head_size == keys
        own = parts.decoder.language_model.rotary_emb.compute_default_rope_parameters
        frequencies, scaling = own(made.checkpoint.config.text_config, device="cpu")
        assert decoder.ropes[0].inverse_frequencies == tuple(frequencies.tolist())
        assert decoder.ropes[0].scaling == scaling


@pytest.mark.parametrize("size", [20, 100, 12])
def test_heads_that_a_kernel_does_not_take_are_refused_before_weights_are_read(
    planned, tiny_model, tmp_path, size
):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"head_dim": size}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError) as error:
        planned(str(folder))
    assert str(error.value) == (
        f"heads of {size} numbers: the attention of target 'onnx' takes multiples of 8; choose"
        " another --target"
    )
