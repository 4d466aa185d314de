"""Families whose positions have three axes: modules, prompts and positions against transformers'.

Qwen2.5-VL, Qwen3-VL, PaddleOCR-VL, GLM-OCR.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevlm.bundle.host import LEVELS, raster  # noqa: E402
from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.evaluation.pytorch import TableRows  # noqa: E402
from edgevlm.graphs.blocks import DecoderBlock  # noqa: E402
from edgevlm.graphs.signals import method_inputs, observe  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.parity.vlm_calls import decoder_calls  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.loops.sequence import added_rows, assemble  # noqa: E402
from edgevlm.runtimes.loops.spelling import Visual  # noqa: E402

# Sizes with several windows where there are any (of 56 pixels in the tiny checkpoint).
SIZES = {
    "tiny-qwen2-5-vl": (112, 168),
    "tiny-qwen3-vl": (96, 160),
    "tiny-paddleocr-vl": (112, 168),
    "tiny-glm-ocr": (112, 168),
}
SMALL = {
    "tiny-qwen2-5-vl": (112, 112),
    "tiny-qwen3-vl": (64, 96),
    "tiny-paddleocr-vl": (56, 84),
    "tiny-glm-ocr": (56, 84),
}
NAMES = list(SIZES)
QUESTION = "What is in this picture, and why?"
# Float32 sums in another order; measured 1e-6.
LIMIT = 1e-5


@pytest.fixture(params=NAMES)
def made(request, tiny):
    """The tiny checkpoint at a size that is not square, prefilled in calls of 16 rows."""
    return tiny(request.param, size=SIZES[request.param], chunk=16)


def picture_of(made, photo, name="flower"):
    image = made.plan.host.image
    return photo(image.width, image.height, name)


def own_inputs(made, processor, prompt, pictures, reply=""):
    """transformers' inputs for pictures that already have the size, and a reply behind them."""
    own = processor(made.planned.checkpoint.folder)
    messages = prompt.chat(QUESTION, images=len(pictures))
    text = own.apply_chat_template(messages, add_generation_prompt=True) + reply
    return own(text=text, images=list(pictures) or None, return_tensors="pt")


def prompt_rows(made, pictures, question=QUESTION, items=None, first=0):
    """Our rows of a turn; without pictures those of words alone."""
    plan, visuals = made.plan, []
    for picture in pictures:
        pixels = torch.from_numpy(made.views(picture))
        features, count = made.features(pixels.numpy())[0], plan.host.visual_tokens
        levels = made.planned.own_levels(made.model, pixels)
        stacked = np.concatenate([level.numpy() for level in levels.values()]) if levels else None
        kept = np.arange(count, dtype=np.int32)
        visuals.append(Visual(features.numpy(), kept, levels=stacked))
    layout = plan.host.layout
    items = items or (layout.prompt if pictures else layout.text)
    table, tokenizer = TableRows(made.parts), made.planned.speller.bundled
    return assemble(plan, items, table, tokenizer, question, visuals, first)


def decoded(made, prompt, answer):
    """Logits of our decoder [1 + n, V]: of the prompt's last row, and of the rows of an answer."""
    parts = made.parts
    block = DecoderBlock(parts.decoder.layers, parts.decoder.norm, parts.decoder.spec.levels)
    cache = [torch.zeros(shape) for state in made.plan.host.states.each for shape in state.shapes]
    logits = []
    for call in decoder_calls(made.plan, prompt, answer):
        values = {name: torch.from_numpy(array) for name, array in call.values.items()}
        fixed = [values[name] for name in ("hidden", "cos", "sin", "mask", "position")]
        added = [values[f"added_{n}"] for n in LEVELS if f"added_{n}" in values]
        hidden, *cache = block(*fixed, *added, *cache)
        if call.head_row is not None:
            row = hidden[0, call.head_row]
            logits.append(torch.nn.functional.linear(row, parts.head))
    return torch.stack(logits)


def test_vision_modules_equal_the_models_encoder(made):
    image = made.plan.host.image
    pixels = torch.randn(1, 3, image.height, image.width).numpy()
    ours, theirs = made.features(pixels), made.reference_features(pixels)
    assert tuple(ours.shape) == (1, made.plan.host.visual_tokens, theirs.shape[-1])
    assert difference(ours, theirs)[0] <= LIMIT


def test_levels_equal_the_models_encoder(tiny):
    made = tiny("tiny-qwen3-vl", size=SIZES["tiny-qwen3-vl"], chunk=16)
    image, names = made.plan.host.image, LEVELS[:3]
    pixels = torch.randn(1, 3, image.height, image.width)
    _, ours = method_inputs(observe(made.parts, names), names, pixels)
    theirs = made.planned.own_levels(made.model, pixels)
    assert list(theirs) == list(ours) == [*names]
    assert made.plan.host.levels == (0, 1, 2)
    for name in names:
        assert difference(ours[name], theirs[name])[0] <= LIMIT


def test_signals_fold_as_the_connector_does(made):
    """A value of a patch goes to the token that the patch is part of, in raster order."""
    encoder, image = made.parts.encoder, made.plan.host.image
    grid = encoder.fold.grid
    rows, columns = grid.tokens
    places = torch.arange(rows * columns, dtype=torch.float32).reshape(1, 1, rows, columns)
    wide = torch.nn.functional.interpolate(places, size=(grid.height, grid.width))
    assert encoder.fold(grid.ordered(wide)).flatten().tolist() == list(range(rows * columns))
    shares = observe(made.parts, ("cls_attention",))
    pixels = torch.randn(1, 3, image.height, image.width)
    _, signals = method_inputs(shares, ("cls_attention",), pixels)
    block = grid.merge**2
    assert signals["cls_attention"].sum().item() * block == pytest.approx(1.0, abs=1e-5)


def test_decoder_layers_with_cache_equal_the_language_model(made, decoder_difference):
    assert decoder_difference(made) <= LIMIT


def test_two_pictures_and_an_answer_equal_transformers_on_its_own_inputs(
    made, processor, prompt, photo
):
    """Ids, positions, and logits of our chunked decoder behind our encoder: the whole model."""
    pictures = [picture_of(made, photo), picture_of(made, photo, "stream")]
    reply = " A pot of flowers."
    first = own_inputs(made, processor, prompt, pictures)
    inputs = own_inputs(made, processor, prompt, pictures, reply)
    token, rows = made.model.config.image_token_id, prompt_rows(made, pictures)
    ids = first.input_ids[0].tolist()
    assert [token if i == -1 else i for i in rows.ids] == ids
    positions, deltas = made.model.model.get_rope_index(
        first.input_ids, first.mm_token_type_ids, image_grid_thw=first.image_grid_thw
    )
    assert rows.positions.T.tolist() == positions[:, 0].tolist()
    assert rows.next == len(ids) + int(deltas)
    assert rows.next < len(ids)  # a picture spans less than its tokens
    answer = TableRows(made.parts)[inputs.input_ids[0, len(ids) :].tolist()]
    theirs = made.model(**inputs).logits[0, len(ids) - 1 :]
    assert len(answer) >= 3
    assert difference(decoded(made, rows, answer), theirs)[0] <= LIMIT


def test_words_alone_equal_transformers(made, processor, prompt):
    rows = prompt_rows(made, [])
    inputs = own_inputs(made, processor, prompt, [])
    assert list(rows.ids) == inputs.input_ids[0].tolist()
    assert rows.positions.tolist() == [[i] * 3 for i in range(len(rows.rows))]
    theirs = made.model(**inputs).logits[0, -1:]
    assert difference(decoded(made, rows, rows.rows[:0]), theirs)[0] <= LIMIT


def test_a_further_turn_goes_on_behind_the_span_of_the_picture(made, processor, prompt, photo):
    own, picture = processor(made.planned.checkpoint.folder), picture_of(made, photo)
    messages = prompt.chat(QUESTION, images=1)
    messages += [{"role": "assistant", "content": [{"type": "text", "text": "A pot of flowers."}]}]
    messages += prompt.chat("Which colour?")
    text = own.apply_chat_template(messages, add_generation_prompt=True)
    whole = own(text=text, images=[picture], return_tensors="pt")
    first = prompt_rows(made, [picture])
    tokenizer, token = made.planned.speller.bundled, made.model.config.image_token_id
    reply = tokenizer.encode("A pot of flowers.", add_special_tokens=False).ids
    layout, begin = made.plan.host.layout, first.next + len(reply)
    turn = prompt_rows(made, [], "Which colour?", layout.turn, begin)
    ids = [*first.ids, *reply, *turn.ids]
    assert [token if i == -1 else i for i in ids] == whole.input_ids[0].tolist()
    positions, _ = made.model.model.get_rope_index(
        whole.input_ids, whole.mm_token_type_ids, image_grid_thw=whole.image_grid_thw
    )
    assert turn.positions.T.tolist() == positions[:, 0, -len(turn.rows) :].tolist()


def test_preprocessing_equals_the_processors(made, photo):
    """Of pictures that the processor itself brings to our size, as of others."""
    from edgevlm.models.processor import load_images

    image, family = made.plan.host.image, made.planned.checkpoint.family
    own = load_images(made.planned.checkpoint)
    near = [(w, h) for w in (-13, -4, 7) for h in (-9, 0, 11)]
    sizes = [(image.width + w, image.height + h) for w, h in near] + [(333, 91)]
    for width, height in sizes:
        picture = photo(width, height)
        theirs = family.processor_views(own, picture, image)
        np.testing.assert_allclose(made.views(picture), theirs, atol=1e-6)
        grid = own([picture], return_tensors="np")["image_grid_thw"].tolist()
        side = own.patch_size
        asked = grid == [[1, image.height // side, image.width // side]]
        assert asked == (width != 333)


def test_kept_tokens_keep_their_places(tiny):
    made = tiny("tiny-qwen2-5-vl", size=(112, 168), tokens=6)
    assert made.plan.host.positions == "original"
    (item,) = [item for item in made.plan.host.layout.image if item.kind == "visual"]
    assert (item.places, item.span) == (raster(1, 4, 6), 6)


SIGNAL = "which this encoder cannot give: its keys turn by the place of a patch, not alone by what"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tiles": (2, 2)}, "this family cuts no tiles; leave out --tiles and give a larger"),
        ({"size": (16128, 56)}, "size 16128x56 has one side more than 200 times the other"),
        ({"size": (100, 112)}, "size 100x112 has sides that are no multiples of"),
        ({"tokens": 4, "methods": ("visionzip",)}, f"visionzip needs the signal 'keys', {SIGNAL}"),
        (
            {"methods": ("tome@vision:r=8",)},
            "tome at site vision merges tokens between the encoder's layers, and here they cannot:"
            " queries and keys turn by the place of a patch",
        ),
        (
            {"tokens": 4, "methods": ("divprune:positions=contiguous",)},
            "divprune with positions=contiguous numbers tokens anew, and this model's have 3 axes",
        ),
    ],
)
def test_what_the_static_form_has_not_is_refused(preset, name, options, message):
    path = str(preset(name))
    with pytest.raises(PlanError) as caught:
        make_plan(Recipe(model=path, **options), find(path))
    assert message in str(caught.value)


def test_clips_of_paddleocr_vl_are_refused(preset):
    path = str(preset("tiny-paddleocr-vl"))
    with pytest.raises(PlanError, match=r"^clips of this family are not supported: got 4 frames"):
        make_plan(Recipe(model=path, frames=4), find(path))


def test_sizes_beyond_the_processors_are_refused(tiny):
    checkpoint = tiny("tiny-qwen2-5-vl", size=(112, 168), chunk=16).planned.checkpoint
    numbers = checkpoint.processor() | {"max_pixels": 100_000}
    with pytest.raises(PlanError, match="a size of 200704 pixels is outside of what the image"):
        checkpoint.family.describe(checkpoint.config, numbers, Recipe())
    with pytest.raises(PlanError, match="the image processor's merge_size is 4, the encoder's 2"):
        checkpoint.family.describe(checkpoint.config, numbers | {"merge_size": 4}, Recipe())


def test_a_trial_of_few_layers_takes_as_many_levels(preset):
    path = str(preset("tiny-qwen3-vl"))
    planned = make_plan(Recipe(model=path, size=(64, 64), layers=2), find(path))
    assert planned.plan.host.levels == (0, 1)
    pixels = torch.zeros(1, 3, 64, 64)
    own = planned.own_levels(planned.checkpoint.load_model(), pixels)
    assert list(own) == ["level_0", "level_1"]


@pytest.mark.parametrize("layers", [[0, 0], [4], [-1], list(range(9))])
def test_levels_that_are_no_layers_are_refused(tiny, layers):
    checkpoint = tiny("tiny-qwen3-vl", size=SIZES["tiny-qwen3-vl"], chunk=16).planned.checkpoint
    config = copy.deepcopy(checkpoint.config)
    config.vision_config.deepstack_visual_indexes = layers
    with pytest.raises(
        PlanError, match=r"^deepstack_visual_indexes is .* at most 8 of the encoder"
    ):
        checkpoint.family.describe(config, {}, Recipe(size=(64, 64)))


def test_levels_leave_no_room_for_a_method_inside_the_decoder(preset):
    path = str(preset("tiny-qwen3-vl"))
    recipe = Recipe(model=path, size=(64, 64), methods=("fastv:tokens=4,layer=2",))
    with pytest.raises(PlanError, match="fastv at site decoder takes tokens out between layers"):
        make_plan(recipe, find(path))


def test_sections_that_make_no_head_are_refused(tiny):
    checkpoint = tiny("tiny-qwen2-5-vl", size=(112, 168), chunk=16).planned.checkpoint
    config = SimpleNamespace(**checkpoint.config.__dict__)
    text = checkpoint.config.text_config
    rope = text.rope_parameters | {"mrope_section": [2, 3, 4]}
    config.text_config = SimpleNamespace(**text.__dict__ | {"rope_parameters": rope})
    with pytest.raises(PlanError, match=r"mrope_section \[2, 3, 4\] does not make the 8"):
        checkpoint.family.describe(config, {}, Recipe(size=(112, 112)))


# Windows of an encoder are compared by themselves (tests/exporters), the rest is that of Qwen3-VL.
ALIKE = ("tiny-qwen2-5-vl", "tiny-paddleocr-vl", "tiny-glm-ocr")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ALIKE]


@pytest.fixture(scope="module", params=[*SLOW, "tiny-qwen3-vl"])
def loop(request, preset, once):
    """A text loop over an export that passed `verify`."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from edgevlm.bundle.files import Bundle
    from edgevlm.pipeline import export
    from edgevlm.runtimes.loops.text import TextLoop
    from edgevlm.runtimes.on_onnxruntime.engine import Engine
    from edgevlm.runtimes.residency.resident import ResidentBlocks

    model, size = str(preset(request.param)), SMALL[request.param]
    recipe = Recipe(model=model, size=size, chunk=16, context=192, speculate=4)
    path = once(f"{request.param}.edgevlm", lambda out: export(recipe, out))
    bundle = Bundle.open(path)
    return TextLoop(bundle, ResidentBlocks(bundle.plan, Engine(bundle, threads=1)))


def test_a_greedy_answer_is_that_of_generate(loop, tiny, processor, prompt, photo):
    made = tiny(loop.plan.recipe.model, size=loop.plan.recipe.size)
    pictures = [picture_of(made, photo), picture_of(made, photo, "stream")]
    inputs = own_inputs(made, processor, prompt, pictures)
    whole = made.model.generate(**inputs, max_new_tokens=32, do_sample=False)[0].tolist()
    loop.forget()
    visuals = [loop.see([picture]) for picture in pictures]
    answer = loop.ask(QUESTION, lambda: visuals, max_new_tokens=32)
    assert list(answer.token_ids) == whole[inputs.input_ids.shape[1] :]
    assert loop.position < loop.length


def test_a_bundle_answers_alike_with_a_draft_and_with_a_prefix_in_the_cache(loop, photo):
    from edgevlm.runtimes.loops.drafts import lookup

    def talk(draft=None):
        loop.reset()
        visual = loop.see([photo(90, 70)])
        first = loop.ask(QUESTION, lambda: [visual], max_new_tokens=12, draft=draft)
        second = loop.ask("And why?", max_new_tokens=12, draft=draft)
        return first.token_ids, second.token_ids, loop.position, loop.length

    loop.forget()
    fresh = talk()
    assert talk() == fresh  # the prompt's rows are in the cache
    assert talk(lookup) == fresh
    loop.forget()
    assert talk(lookup) == fresh


def test_what_the_cache_holds_of_a_picture_leaves_whole_calls_for_its_levels(loop, photo):
    """Only `prefill` adds levels, and a call of it must fit up to the picture's last row."""
    loop.forget()
    visual, layout, chunk = loop.see([photo(90, 70)]), loop.plan.host.layout, loop.plan.host.chunk
    loop.ask(QUESTION, lambda: [visual], max_new_tokens=2)
    prompt = assemble(loop.plan, layout.prompt, loop.table, loop.tokenizer, QUESTION, [visual], 0)
    middle = prompt.visual[1]
    loop.reset()
    loop._marked = middle
    rest = loop.uncached(prompt)
    levels = bool(loop.plan.host.levels)
    assert middle % chunk
    assert loop.length == (middle // chunk * chunk if levels else middle)
    assert len(rest.rows) == len(prompt.rows) - loop.length
    assert [row + loop.length for row in rest.visual] == [
        r for r in prompt.visual if r >= loop.length
    ]
    if levels:
        np.testing.assert_array_equal(rest.levels, prompt.levels[:, -len(rest.visual) :])
        added = added_rows(loop.plan, rest, 0, chunk)
        row = rest.visual[0]
        np.testing.assert_array_equal(added["added_level_1"][0, row], rest.levels[1, 0])
        assert not added["added_level_1"][0, :row].any()
    assert loop._calls(loop.length, 3, None, chunked=2) == [("prefill", 3)]
    assert loop._calls(loop.length, 3, None) == [("check", 3)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["identity", "divprune", "vispruner", "dart@decoder"])
@pytest.mark.parametrize("target", ["onnx", "executorch", "coreml"])
@pytest.mark.parametrize("name", NAMES)
def test_targets_and_methods_agree_with_pytorch(preset, tmp_path, name, target, method):
    from edgevlm.pipeline import export

    half = target == "coreml"
    options = {"size": SIZES[name], "target": target, "methods": (method,)}
    options["quantize"] = "fp16" if half else "none"
    if method not in ("identity", "dart@decoder"):
        options["tokens"] = 8
    recipe = Recipe(model=str(preset(name)), **options)
    if name == "tiny-qwen3-vl" and "decoder" in method:
        with pytest.raises(PlanError, match="takes tokens out between layers"):
            export(recipe, tmp_path / "tiny.edgevlm")
        return
    done = export(recipe, tmp_path / "tiny.edgevlm")
    assert done.verification.ok
    assert half or done.verification.kept_equal == 1.0
