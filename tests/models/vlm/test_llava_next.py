"""LLaVA-NeXT: our static modules and our prompt against transformers' own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

NAME = "tiny-llava-next"
QUESTION = "What is in this picture, and why?"
# Float32 sums in another order; measured 1e-6.
LIMIT = 1e-5


@pytest.fixture
def changed(preset, tmp_path):
    """The tiny checkpoint with another config and another tokenizer, as its folder."""

    def make(normalizer=None, text=None, **config):
        path = shutil.copytree(preset(NAME), tmp_path / "changed")
        document = json.loads((path / "config.json").read_text())
        document["text_config"] |= text or {}
        (path / "config.json").write_text(json.dumps(document | config))
        tokenizer = json.loads((path / "tokenizer.json").read_text())
        tokenizer["normalizer"] = normalizer
        (path / "tokenizer.json").write_text(json.dumps(tokenizer))
        return str(path)

    return make


def own_inputs(made, processor, prompt, picture):
    """transformers' inputs for a picture that already has the size of the grid."""
    own = processor(made.planned.checkpoint.folder)
    text = own.apply_chat_template(prompt.chat(QUESTION, images=1), add_generation_prompt=True)
    return own(text=text, images=[picture], return_tensors="pt")


@pytest.mark.parametrize("tiles", [(1, 1), (2, 2), (1, 3)], ids=["1x1", "2x2", "1x3"])
def test_vision_modules_equal_the_models_encoder(tiny, tiles):
    made = tiny(NAME, tiles=tiles)
    image = made.plan.host.image
    pixels = torch.rand(image.views, 3, image.height, image.width).mul(2).sub(1).numpy()
    ours, theirs = made.features(pixels), made.reference_features(pixels)
    assert tuple(ours.shape) == (1, made.planned.description.shape.tokens, theirs.shape[-1])
    assert difference(ours, theirs)[0] <= LIMIT


@pytest.mark.parametrize("layer", [-1, -3, 0, 2])
def test_any_selected_layer_equals_the_models(tiny, changed, layer):
    made = tiny(changed(vision_feature_layer=layer))
    pixels = torch.randn(1, 3, 56, 56).numpy()
    assert difference(made.features(pixels), made.reference_features(pixels))[0] <= LIMIT


@pytest.mark.parametrize("tiles", [(1, 1), (2, 2), (3, 1)], ids=["1x1", "2x2", "3x1"])
def test_features_with_newlines_equal_the_models_packing(tiny, prompt, tiles):
    made = tiny(NAME, tiles=tiles)
    image, core = made.plan.host.image, made.model.model
    pixels = torch.rand(image.views, 3, image.height, image.width)
    states = core.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    (packed,), _ = core.pack_image_features(
        [core.multi_modal_projector(states[:, 1:])],
        torch.tensor([[image.rows * image.height, image.columns * image.width]]),
        vision_feature_select_strategy="default",
        image_newline=core.image_newline,
    )
    first = made.plan.host.layout.prompt.index(
        next(p for p in made.plan.host.layout.prompt if not p.ids)
    )
    before = len(made.plan.host.layout.prompt[first - 1].ids)
    rows = prompt(made).rows(QUESTION, [made.features(pixels.numpy())])
    ours = rows[0, before : before + len(packed)]
    assert difference(ours, packed)[0] <= LIMIT


@pytest.mark.parametrize("tiles", [(1, 1), (2, 2)], ids=["1x1", "2x2"])
def test_one_newline_at_the_end_remains_of_a_reduced_image(tiny, tiles):
    made = tiny(NAME, tiles=tiles, tokens=24)
    newline = made.plan.host.vocabulary
    visual, end = made.plan.host.layout.image
    assert (visual.kind, visual.start) == ("visual", 0)
    assert visual.stop == made.planned.description.shape.tokens
    assert end.ids == (newline,)


def test_the_class_token_passes_the_encoder_and_leaves_before_the_projector(tiny):
    made = tiny(NAME)
    x = torch.rand(1, 3, 56, 56)
    encoder = made.parts.encoder
    assert len(encoder.layers) == 2  # of three layers the last is not used
    for module in (encoder.embedding, *encoder.layers):
        x = module(x)
        assert tuple(x.shape) == (1, 1 + 196, 64)
    assert tuple(encoder.connector(x).shape) == (1, 196, 64)


# Qwen2 is the language model of the tiny LLaVA-OneVision.
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_decoder_layers_with_cache_equal_the_language_model(
    tiny, changed, decoder_difference, kind
):
    made = tiny(changed(text={"model_type": kind, "sliding_window": None}))
    assert made.model.config.text_config.model_type == kind
    assert decoder_difference(made) <= LIMIT


@pytest.mark.parametrize("tiles", [(2, 1), (2, 2), (1, 3)])
def test_one_image_equals_transformers_on_its_own_inputs(tiny, processor, prompt, photo, tiles):
    made = tiny(NAME, tiles=tiles)
    image = made.plan.host.image
    picture = photo(image.columns * image.width, image.rows * image.height)
    inputs, ours = own_inputs(made, processor, prompt, picture), prompt(made)
    token = made.model.config.image_token_id
    assert ours.ids(QUESTION, 1, token) == inputs.input_ids[0].tolist()
    views = made.views(picture)
    np.testing.assert_allclose(views, inputs.pixel_values[0].numpy(), atol=1e-6)
    rows = ours.rows(QUESTION, [made.features(views)])
    assert difference(ours.logits(rows), made.model(**inputs).logits)[0] <= LIMIT


def test_the_base_image_alone_is_the_processors(tiny, processor, prompt, photo):
    made = tiny(NAME)
    picture = photo(56, 112)
    inputs = own_inputs(made, processor, prompt, picture)
    np.testing.assert_allclose(made.views(picture), inputs.pixel_values[0][:1].numpy(), atol=1e-6)


# Llama's tokenizers put a blank, as "▁", in front of each text between special tokens.
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


@pytest.mark.parametrize("normalizer", [None, PREPEND], ids=["bytes", "prepend"])
def test_prompts_start_with_the_token_that_the_tokenizer_adds(
    tiny, changed, processor, prompt, photo, normalizer
):
    made = tiny(changed(normalizer=normalizer), tiles=(2, 2))
    own, ours = processor(made.planned.checkpoint.folder), prompt(made)
    token = made.model.config.image_token_id
    inputs = own_inputs(made, processor, prompt, photo(112, 112))
    assert ours.ids(QUESTION, 1, token) == inputs.input_ids[0].tolist()
    text = own.apply_chat_template(prompt.chat(QUESTION), add_generation_prompt=True)
    plain = ours.ids(QUESTION, 0, token)
    assert plain == own.tokenizer(text).input_ids
    assert plain[0] == own.tokenizer.bos_token_id
    assert own.tokenizer.bos_token_id not in ours.ids(QUESTION, 0, token, turn=True)


def test_a_start_that_the_template_writes_is_not_doubled(tiny, changed, processor, prompt):
    path = changed()
    template = find(path).folder / "chat_template.jinja"
    template.write_text("<s>" + template.read_text())
    made = tiny(path)
    own, ours = processor(made.planned.checkpoint.folder), prompt(made)
    text = own.apply_chat_template(prompt.chat(QUESTION), add_generation_prompt=True)
    assert ours.ids(QUESTION, 0, 0) == own.tokenizer(text, add_special_tokens=False).input_ids


def test_second_turn_gives_the_ids_of_the_whole_conversation(tiny, processor, prompt, photo):
    made = tiny(NAME, tiles=(2, 2))
    token = made.model.config.image_token_id
    own, ours = processor(made.planned.checkpoint.folder), prompt(made)
    messages = prompt.chat(QUESTION, images=1)
    messages += [{"role": "assistant", "content": [{"type": "text", "text": "A pot of flowers."}]}]
    messages += prompt.chat("Which colour?")
    text = own.apply_chat_template(messages, add_generation_prompt=True)
    whole = own(text=text, images=[photo(112, 112)]).input_ids[0]
    reply = ours.tokenizer.encode(" A pot of flowers.", add_special_tokens=False).ids
    first = ours.ids(QUESTION, 1, token)
    assert first + reply + ours.ids("Which colour?", 0, token, turn=True) == list(whole)


def test_full_keeps_the_class_token_as_a_grid_of_its_own(tiny, changed):
    path = changed(vision_feature_select_strategy="full")
    own = Path(path, "processor_config.json")
    strategy = {"vision_feature_select_strategy": "full"}
    own.write_text(json.dumps(json.loads(own.read_text()) | strategy))
    made = tiny(path)
    assert made.planned.description.shape.grids == ((1, 1), (14, 14))
    pixels = torch.randn(1, 3, 56, 56).numpy()
    ours = made.features(pixels)
    assert ours.shape[1] == made.plan.host.visual_tokens == 197
    assert difference(ours, made.reference_features(pixels))[0] <= LIMIT


SIGLIP = SimpleNamespace(model_type="siglip_vision_model")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"frames": 4}, "^llava_next does not support clips: got 4 frames, expected 1$"),
        (
            {"vision_config": SIGLIP},
            {},
            "^vision tower 'siglip_vision_model' is not supported, expected clip_vision_model$",
        ),
        (
            {"text_config": SimpleNamespace(model_type="olmo2")},
            {},
            "^language model 'olmo2' is not supported, llama, mistral, qwen2, .* are; choose a"
            " checkpoint over one of these$",
        ),
        (
            {"vision_feature_layer": [-1, -2]},
            {},
            r"^vision_feature_layer is \[-1, -2\]: several are not supported, only one is$",
        ),
        ({"vision_feature_layer": -5}, {}, "^vision_feature_layer -5 is none of the 3 layers$"),
        ({"vision_feature_layer": 4}, {}, "^vision_feature_layer 4 is none of the 3 layers$"),
        (
            {},
            {"tiles": (2, 3)},
            r"^tiles 2x3 is not a grid of the model, expected one of \[\(1, 2\), \(1, 3\), .*\]$",
        ),
        (
            {"vision_feature_select_strategy": "full"},
            {"tiles": (2, 2)},
            "^tiles 2x2 need vision_feature_select_strategy 'default', the class token of 'full'"
            " has no place in a grid; use 1x1$",
        ),
    ],
)
def test_what_the_static_form_has_not_is_refused(tiny, change, options, message):
    checkpoint = tiny(NAME).planned.checkpoint
    config = SimpleNamespace(**{**checkpoint.config.__dict__, **change})
    with pytest.raises(PlanError, match=message):
        checkpoint.family.describe(config, {}, Recipe(**options))


def test_numbers_of_clip_stand_in_where_the_processor_names_none(tiny):
    checkpoint = tiny(NAME).planned.checkpoint
    image = checkpoint.family.describe(checkpoint.config, {}, Recipe()).image
    assert image == tiny(NAME).plan.host.image


def test_bytes_are_the_models_without_the_layers_that_are_not_used(preset):
    path = str(preset(NAME))
    made = make_plan(Recipe(model=path), find(path))
    model = made.checkpoint.load_model()
    tower = model.model.vision_tower
    unused = [*tower.encoder.layers[2].parameters(), *tower.post_layernorm.parameters()]
    total = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in unused)
    assert made.plan.weights_bytes == 4 * total
    assert not any(block.shares for block in made.plan.blocks)
