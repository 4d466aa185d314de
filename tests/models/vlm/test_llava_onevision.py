"""LLaVA-OneVision: our static modules and our prompt against transformers' own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

NAME = "tiny-llava-onevision"
QUESTION = "What is in this picture, and why?"
# Float32 sums in another order; measured 1e-6.
LIMIT = 1e-5


@pytest.mark.parametrize(
    "options",
    [{}, {"tiles": (2, 2)}, {"tiles": (2, 3)}, {"frames": 4}],
    ids=["1x1", "2x2", "2x3", "4 frames"],
)
def test_vision_modules_equal_the_models_encoder(tiny, options):
    made = tiny(NAME, **options)
    image = made.plan.host.image
    pixels = torch.rand(image.views, 3, image.height, image.width).mul(2).sub(1).numpy()
    ours, theirs = made.features(pixels), made.reference_features(pixels)
    assert tuple(ours.shape) == (1, made.planned.description.shape.tokens, theirs.shape[-1])
    assert difference(ours, theirs)[0] <= LIMIT


def test_a_prompt_without_image_gives_the_ids_of_the_template(tiny, processor, prompt):
    made = tiny(NAME)
    own, ours = processor(made.planned.checkpoint.folder), prompt(made)
    text = own.apply_chat_template(prompt.chat(QUESTION), add_generation_prompt=True)
    assert ours.ids(QUESTION, 0, 0) == own.tokenizer(text).input_ids


def test_pooling_of_an_odd_grid_equals_the_models(tiny):
    made = tiny(NAME, frames=2)
    assert made.planned.description.shape.frames == 2
    pool = made.planned.checkpoint.family.Pool(7)
    features = torch.randn(2, 49, 8)
    config = made.model.config.vision_config
    sizes = config.image_size, config.patch_size
    try:
        config.image_size, config.patch_size = 28, 4
        theirs = made.model.model.apply_pooling(features)
    finally:
        config.image_size, config.patch_size = sizes
    assert difference(pool(features), theirs)[0] <= LIMIT


def test_decoder_layers_with_cache_equal_the_language_model(tiny, decoder_difference):
    assert decoder_difference(tiny(NAME)) <= LIMIT


@pytest.mark.parametrize("tiles", [(2, 1), (2, 2), (2, 3)])
def test_one_image_equals_transformers_on_its_own_inputs(tiny, processor, prompt, photo, tiles):
    made = tiny(NAME, tiles=tiles)
    image = made.plan.host.image
    picture = photo(image.columns * image.width, image.rows * image.height)
    own, ours = processor(made.planned.checkpoint.folder), prompt(made)
    text = own.apply_chat_template(prompt.chat(QUESTION, images=1), add_generation_prompt=True)
    inputs = own(text=text, images=[picture], return_tensors="pt")
    token = made.model.config.image_token_id
    assert ours.ids(QUESTION, 1, token) == inputs.input_ids[0].tolist()
    views = made.views(picture)
    np.testing.assert_allclose(views, inputs.pixel_values[0].numpy(), atol=1e-6)
    rows = ours.rows(QUESTION, [made.features(views)])
    assert difference(ours.logits(rows), made.model(**inputs).logits)[0] <= LIMIT


@pytest.mark.parametrize("images", [2, 3])
def test_several_images_equal_transformers_on_its_own_inputs(
    tiny, processor, prompt, photo, images
):
    made = tiny(NAME)  # the original gives several images one view each, as tiles 1x1 do
    side = made.plan.host.image.height
    pictures = [photo(side, side), photo(side, side, "stream"), photo(side, side).rotate(90)]
    own, ours = processor(made.planned.checkpoint.folder), prompt(made)
    text = own.apply_chat_template(prompt.chat(QUESTION, images=images), add_generation_prompt=True)
    inputs = own(text=text, images=[pictures[:images]], return_tensors="pt")
    token = made.model.config.image_token_id
    assert ours.ids(QUESTION, images, token) == inputs.input_ids[0].tolist()
    views = [made.views(picture) for picture in pictures[:images]]
    np.testing.assert_allclose(np.stack(views), inputs.pixel_values.numpy(), atol=1e-6)
    rows = ours.rows(QUESTION, [made.features(v) for v in views])
    assert difference(ours.logits(rows), made.model(**inputs).logits)[0] <= LIMIT


def test_one_image_of_one_view_equals_the_models_base_view(tiny, prompt, photo):
    made = tiny(NAME)
    side, token = made.plan.host.image.height, made.model.config.image_token_id
    views = made.views(photo(side, side))
    ours = prompt(made)
    theirs = made.model(
        input_ids=torch.tensor([ours.ids(QUESTION, 1, token)]),
        pixel_values=torch.from_numpy(views),
        image_sizes=torch.tensor([[side, side]]),
        batch_num_images=torch.tensor([2]),  # more than one: no AnyRes tiles
    ).logits
    rows = ours.rows(QUESTION, [made.features(views)])
    assert difference(ours.logits(rows), theirs)[0] <= LIMIT


def test_clip_equals_transformers_on_its_own_inputs(tiny, processor, prompt):
    made = tiny(NAME, frames=4)
    image = made.plan.host.image
    pixels = torch.rand(4, 3, image.height, image.width).mul(2).sub(1).numpy()
    own, ours = processor(made.planned.checkpoint.folder, pixels), prompt(made)
    text = own.apply_chat_template(prompt.chat(QUESTION, videos=1), add_generation_prompt=True)
    inputs = own(text=text, videos=[list(pixels)], return_tensors="pt")
    token = made.model.config.video_token_id
    assert ours.ids(QUESTION, 1, token) == inputs.input_ids[0].tolist()
    rows = ours.rows(QUESTION, [made.features(pixels)])
    inputs = {k: inputs[k] for k in ("input_ids", "attention_mask", "pixel_values_videos")}
    assert difference(ours.logits(rows), made.model(**inputs).logits)[0] <= LIMIT


def test_second_turn_gives_the_ids_of_the_whole_conversation(tiny, processor, prompt, photo):
    made = tiny(NAME, tiles=(2, 2))
    side, token = made.plan.host.image.height, made.model.config.image_token_id
    own, ours = processor(made.planned.checkpoint.folder), prompt(made)
    messages = prompt.chat(QUESTION, images=1)
    messages += [{"role": "assistant", "content": [{"type": "text", "text": "A pot of flowers."}]}]
    messages += prompt.chat("Which colour?")
    text = own.apply_chat_template(messages, add_generation_prompt=True)
    # The template writes `assistant \n` in front of an old answer and `assistant\n` in front of a
    # new one; a cache holds what was there when the answer was made.
    assert text.count("assistant \n") == text.count("assistant\n") == 1
    text = text.replace("assistant \n", "assistant\n")
    whole = own(text=text, images=[photo(2 * side, 2 * side)]).input_ids[0]
    reply = ours.tokenizer.encode("A pot of flowers.").ids
    first = ours.ids(QUESTION, 1, token)
    assert first + reply + ours.ids("Which colour?", 0, token, turn=True) == list(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_layer": [-1, -2]}, r"vision_feature_layer is \[-1, -2\]: several are"),
        (
            {"vision_config": SimpleNamespace(model_type="clip_vision_model")},
            "^vision tower 'clip_vision_model' is not supported, SigLIP's is$",
        ),
        (
            {"text_config": SimpleNamespace(model_type="phi3")},
            "^language model 'phi3' is not supported, llama, mistral, qwen2, .* are;",
        ),
        ({"vision_aspect_ratio": "anyres"}, "vision_aspect_ratio 'anyres' is not supported"),
        ({"vision_aspect_ratio": "9"}, "vision_aspect_ratio '9' is not supported"),
        ({"vision_aspect_ratio": "anyres_max_0"}, "set anyres_max_9 in config.json"),
        ({"vision_feature_layer": 9}, "vision_feature_layer 9 is none of the 2 layers"),
        ({"vision_feature_select_strategy": "default"}, "'default' is not supported, 'full' is"),
        (
            {"image_grid_pinpoints": [[56, 112]]},
            r"2x2 is not a grid of the model, expected one of \[\(1, 2\)",
        ),
        ({"vision_aspect_ratio": "anyres_max_2"}, "tiles 2x2 is more than this model's 2 tiles"),
    ],
)
def test_what_the_static_form_has_not_is_refused(tiny, change, message):
    checkpoint = tiny(NAME).planned.checkpoint
    config = SimpleNamespace(**{**checkpoint.config.__dict__, **change})
    with pytest.raises(PlanError, match=message):
        checkpoint.family.describe(config, {}, Recipe(tiles=(2, 2)))
