"""SmolVLM and Idefics3: our static modules and our prompt against transformers' own."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

QUESTION = "What is in this picture, and why?"
NAMES = ["tiny-smolvlm", "tiny-idefics3"]
# Float32 sums in another order; measured 1e-6.
LIMIT = 1e-5
# Video metadata as a decoder would give it: four frames of a clip of a bit over two minutes.
TIMES, DURATION = (0.0, 41.5, 83.0, 124.5), 125.9


def own_processor_images(made, processor, pictures, splitting):
    """transformers' inputs for pictures that already have the size of the grid."""
    messages = [{"type": "image"} for _ in pictures]
    edge = max(pictures[0].size)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [*messages, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    return processor(
        text=text,
        images=pictures,
        return_tensors="pt",
        do_image_splitting=splitting,
        size={"longest_edge": edge},
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [{}, {"tiles": (2, 2)}, {"tiles": (2, 3)}, {"frames": 4}],
    ids=["1x1", "2x2", "2x3", "4 frames"],
)
def test_vision_modules_equal_the_models_encoder(tiny, name, options):
    made = tiny(name, **options)
    image = made.plan.host.image
    pixels = torch.rand(image.views, 3, image.height, image.width).mul(2).sub(1).numpy()
    ours, theirs = made.features(pixels), made.reference_features(pixels)
    assert tuple(ours.shape) == (1, made.planned.description.shape.tokens, theirs.shape[-1])
    assert difference(ours, theirs)[0] <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_decoder_layers_with_cache_equal_the_language_model(tiny, decoder_difference, name):
    assert decoder_difference(tiny(name)) <= LIMIT


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("tiles", "images"), [((1, 1), 1), ((2, 2), 1), ((2, 3), 1), ((1, 1), 3), ((2, 2), 2)]
)
def test_whole_model_equals_transformers_on_its_own_inputs(
    tiny, processor, prompt, photo, name, tiles, images
):
    made = tiny(name, tiles=tiles)
    image = made.plan.host.image
    size = (image.columns * image.width, image.rows * image.height)
    pictures = [photo(*size), photo(*size, "stream"), photo(*size).rotate(90)][:images]
    own = processor(made.planned.checkpoint.folder)
    inputs = own_processor_images(made, own, pictures, splitting=tiles != (1, 1))
    ours = prompt(made)
    token = made.model.config.image_token_id
    assert ours.ids(QUESTION, images, token) == inputs.input_ids[0].tolist()
    views = [made.views(picture) for picture in pictures]
    np.testing.assert_allclose(np.concatenate(views), inputs.pixel_values[0].numpy(), atol=1e-6)
    rows = ours.rows(QUESTION, [made.features(v) for v in views])
    assert difference(ours.logits(rows), made.model(**inputs).logits)[0] <= LIMIT


@pytest.fixture
def joining(preset, tmp_path):
    """A checkpoint whose tokenizer joins " You" and two line ends, as the published one does."""
    path = shutil.copytree(preset("tiny-smolvlm"), tmp_path / "joining")
    content = json.loads((path / "tokenizer.json").read_text())
    merges, vocab = content["model"]["merges"], content["model"]["vocab"]
    wanted = [["Ġ", "Y"], ["ĠY", "ou"], ["Ċ", "Ċ"]]
    for _ in wanted:  # in the places of the last, rarest ones
        del vocab["".join(merges.pop())]
    free = sorted(set(range(len(vocab) + 3)) - set(vocab.values()))[:3]
    merges[:0] = wanted
    vocab |= {"".join(merge): number for merge, number in zip(wanted, free, strict=True)}
    (path / "tokenizer.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("words", ["plain", "joining"])
def test_clip_equals_transformers_on_its_own_inputs(tiny, processor, prompt, words, request):
    name = str(request.getfixturevalue("joining")) if words == "joining" else "tiny-smolvlm"
    made = tiny(name, frames=4)
    image = made.plan.host.image
    pixels = torch.rand(4, 3, image.height, image.width).mul(2).sub(1).numpy()
    metadata = SimpleNamespace(fps=1.0, timestamps=list(TIMES), duration=DURATION)
    own = processor(made.planned.checkpoint.folder, pixels, metadata)
    # Frames taken at known times: `apply_chat_template` would sample them again.
    text = own.apply_chat_template(prompt.chat(QUESTION, videos=1), add_generation_prompt=True)
    inputs = own(text=text, videos=[list(pixels)], return_tensors="pt")
    ours = prompt(made)
    token = made.model.config.image_token_id
    assert ours.ids(QUESTION, 1, token, TIMES, DURATION) == inputs.input_ids[0].tolist()
    rows = ours.rows(QUESTION, [made.features(pixels)], TIMES, DURATION)
    inputs = {k: inputs[k] for k in ("input_ids", "attention_mask", "pixel_values")}
    assert difference(ours.logits(rows), made.model(**inputs).logits)[0] <= LIMIT


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tiles", [(1, 1), (2, 2)])
def test_second_turn_gives_the_ids_of_the_whole_conversation(
    tiny, processor, prompt, photo, name, tiles
):
    made = tiny(name, tiles=tiles)
    image, token = made.plan.host.image, made.model.config.image_token_id
    own, ours = processor(made.planned.checkpoint.folder), prompt(made)
    messages = prompt.chat(QUESTION, images=1)
    messages += [{"role": "assistant", "content": [{"type": "text", "text": "A pot of flowers."}]}]
    messages += prompt.chat("Which colour?")
    picture = photo(image.columns * image.width, image.rows * image.height)
    whole = own(
        text=own.apply_chat_template(messages, add_generation_prompt=True),
        images=[picture],
        do_image_splitting=tiles != (1, 1),
        size={"longest_edge": picture.width},
    ).input_ids[0]
    reply = ours.tokenizer.encode(" A pot of flowers.").ids
    first = ours.ids(QUESTION, 1, token)
    assert first + reply + ours.ids("Which colour?", 0, token, turn=True) == list(whole)


def test_a_prompt_without_image_gives_the_ids_of_the_template(tiny, processor, prompt):
    made = tiny("tiny-smolvlm")
    own, ours = processor(made.planned.checkpoint.folder), prompt(made)
    text = own.apply_chat_template(prompt.chat(QUESTION), add_generation_prompt=True)
    assert ours.ids(QUESTION, 0, 0) == own.tokenizer(text).input_ids


def test_a_grid_that_the_pixel_shuffle_does_not_divide_is_refused(tiny):
    made = tiny("tiny-smolvlm")
    checkpoint = made.planned.checkpoint
    config = SimpleNamespace(scale_factor=3, vision_config=checkpoint.config.vision_config)
    with pytest.raises(PlanError, match="16 patches a side do not divide by the scale factor 3"):
        checkpoint.family.describe(config, {}, Recipe())
