"""What holds for every family: our static modules and prompts against transformers' own.

A family is an entry of `FAMILIES`; what is its own has a file beside this one. By default each is
tried in PyTorch and exported once to ONNX; other targets and methods stand behind `slow`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.models.processor import missing_library  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.parity.own.preprocessing import preprocessing_error  # noqa: E402

QUESTION = "What is in this picture, and why?"
# Float32 sums in another order; measured 1e-6.
LIMIT = 1e-5
# Pictures of odd sizes, width and height.
SIZES = [(1, 1), (3, 200), (37, 41), (64, 64), (65, 63), (100, 301), (333, 97), (448, 336),
         (640, 361), (801, 799)]  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What is tried of a family.

    Attributes:
        preset: Of samples/make_checkpoint.py.
        shapes: Tiles, frames and sizes of recipes, each tried; exports are of the first.
        refused: Sites at which it takes no method, with the reason.
        own: Shapes of which its own processor makes the same prompt; empty for all.
        pixels: Mean difference of its preprocessing from ours, where it resamples otherwise.
        packs: Whether its processor packs patches; its own file compares its prompts then.
        patches: Whether its processor gives patches, which the family puts together for views.
        needs: Libraries without which it is skipped.
        limit: Of the whole model's logits.
    """

    preset: str
    shapes: dict = field(default_factory=lambda: {"1x1": {}})
    refused: dict = field(default_factory=dict)
    own: tuple = ()
    pixels: float = 1e-6
    packs: bool = False
    patches: bool = False
    needs: tuple = ()
    limit: float = LIMIT

    @property
    def answered(self):
        """The shape of which an answer is compared with that of `generate`."""
        return (self.own or ("1x1",))[0]


BOTH_WAYS = {"decoder": "^dart at site decoder needs .* picture or prompt see each other both ways"}
RECURRENT = {"decoder": "leave from layer 1 on by the attention of the layer before, which is re"}
FOLDING = {"vision": "here they cannot: it folds windows of patches between them"}
SLICED = {"1x1": {}, "2x2": {"tiles": (2, 2)}}
TURNED = "^tome at site vision merges tokens .* queries and keys turn by the place of a patch"
FAMILIES = {
    "llava": Family("tiny-llava"),
    "paligemma": Family("tiny-paligemma", refused=BOTH_WAYS),
    "paligemma2": Family("tiny-paligemma2", refused=BOTH_WAYS),
    "gemma3": Family("tiny-gemma3", refused=BOTH_WAYS),
    "gemma4": Family(
        "tiny-gemma4",
        refused=BOTH_WAYS | {"vision": TURNED},
        patches=True,
    ),
    "internvl": Family(
        "tiny-internvl", {"1x1": {}, "2x3": {"tiles": (2, 3)}, "3 frames": {"frames": 3}}
    ),
    "granite_docling": Family(
        "tiny-granite-docling",
        {"1x1": {}, "2x3": {"tiles": (2, 3)}},
        {"decoder": "^dart at site decoder takes tokens out between layers, and this model adds"},
    ),
    "granite_docling_fine": Family(
        "tiny-granite-docling-fine",
        {"1x1": {}, "2x1": {"tiles": (2, 1)}},
        {"decoder": "^dart at site decoder takes tokens out between layers, and this model adds"},
    ),
    "granite4_vision": Family(
        "tiny-granite4-vision",
        {"1x1": {}, "2x1": {"tiles": (2, 1)}},
        {"decoder": "^dart at site decoder takes tokens out between layers, and this model adds"},
        ("2x1",),
    ),
    "mistral3": Family("tiny-mistral3", {"1x1": {"size": (84, 56)}}, {"vision": TURNED}),
    "qwen3_5": Family(
        "tiny-qwen3-5",
        {"1x1": {"size": (64, 96)}},
        RECURRENT | {"vision": TURNED},
        patches=True,
        limit=3e-5,  # measured 1.1e-5 of two pictures
    ),
    "minicpmv4_6": Family("tiny-minicpm-v-4-6", SLICED, RECURRENT | FOLDING, patches=True),
    "minicpmv4_7": Family(
        "tiny-minicpm-v-4-7", SLICED, RECURRENT | FOLDING, ("2x2",), patches=True
    ),
    # Its processor resizes by torchvision.
    "lfm2_vl": Family(
        "tiny-lfm2-vl",
        SLICED,
        RECURRENT,
        ("2x2",),
        pixels=0.01,
        packs=True,
    ),
    "fast_vlm": Family(
        "tiny-fast-vlm",
        refused={"vision": "here they cannot: its encoder is convolutions"},
        needs=("timm", "torchvision"),
    ),
    "gemma3n": Family(
        "tiny-gemma3n",
        refused={
            "vision": "here they cannot: its encoder is convolutions",
            "decoder": "^dart at site decoder needs .* 4 copies of a row go through its layers",
        },
        needs=("timm", "torchvision"),
        limit=1e-4,  # measured 3e-5: pixels differ by 1e-7 in front of 84 blocks
    ),
    # By the generic path; tests/models/test_generic.py has other types.
    "vipllava": Family("tiny-vipllava", refused={"vision": "takes the encoder as one piece"}),
}
NAMES = list(FAMILIES)
SHAPES = [(name, shape) for name, family in FAMILIES.items() for shape in family.shapes]


@pytest.fixture
def made(tiny):
    """`made(name, shape, **options)`: the tiny model of a family, for a recipe."""

    def make(name, shape="1x1", **options):
        family = FAMILIES[name]
        for library in family.needs:
            pytest.importorskip(library, reason=f"{name} has an encoder of {library}")
        return tiny(family.preset, **family.shapes[shape], **options)

    return make


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_vision_modules_equal_the_models_encoder(made, name, shape):
    tiny = made(name, shape)
    image = tiny.plan.host.image
    pixels = torch.rand(image.views, 3, image.height, image.width).mul(2).sub(1).numpy()
    ours, theirs = tiny.features(pixels), tiny.reference_features(pixels)
    assert tuple(ours.shape) == (1, tiny.planned.description.shape.tokens, theirs.shape[-1])
    assert difference(ours, theirs)[0] <= LIMIT
    own = tiny.planned.own_levels(tiny.model, torch.from_numpy(pixels))
    for level, expected in zip(tiny.levels(pixels) if own else (), own.values(), strict=True):
        assert difference(level[None], expected)[0] <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_decoder_layers_with_cache_equal_the_language_model(made, decoder_difference, name):
    assert decoder_difference(made(name)) <= LIMIT


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (n, s)
        for n, s in SHAPES
        if "frames" not in s and s in (FAMILIES[n].own or (s,)) and not FAMILIES[n].packs
    ],
)
def test_an_answer_begins_as_that_of_transformers(
    made, processor, prompt, photo, name, shape, images
):
    tiny = made(name, shape)
    if not images and not tiny.plan.host.layout.text:
        pytest.skip("the model answers about pictures alone")
    image, checkpoint = tiny.plan.host.image, tiny.planned.checkpoint
    size = (image.columns * image.width, image.rows * image.height)
    pictures = [photo(*size), photo(*size, "stream")][:images]
    own, options = processor(checkpoint.folder), checkpoint.family.processor_options(image)
    inputs = prompt.inputs(own, QUESTION, pictures, **options)
    ours = prompt(tiny)
    assert (
        ours.ids(QUESTION, images, tiny.model.config.image_token_id) == inputs.input_ids[0].tolist()
    )
    views = [tiny.views(picture) for picture in pictures]
    if pictures:
        seen, expected = np.concatenate(views), inputs.pixel_values.numpy()
        if FAMILIES[name].patches:
            views_of = checkpoint.family.processor_views
            expected = np.concatenate([views_of(own.image_processor, p, image) for p in pictures])
        np.testing.assert_allclose(seen, expected.reshape(seen.shape), atol=1e-6)
    levels = [tiny.levels(v) for v in views]
    rows = ours.rows(QUESTION, [tiny.features(v) for v in views], levels=levels)
    if tiny.plan.host.rope.axes > 1:
        kinds = inputs.get("mm_token_type_ids", torch.zeros_like(inputs.input_ids))
        grids = {name: inputs.get(name) for name in ("image_grid_thw", "target_sizes")}
        grids = {name: sizes for name, sizes in grids.items() if sizes is not None}
        positions, deltas = tiny.model.model.get_rope_index(inputs.input_ids, kinds, **grids)
        assert ours.last.positions.T.tolist() == positions[:, 0].tolist()
        assert ours.last.next == inputs.input_ids.shape[1] + int(deltas)
    assert difference(ours.logits(rows), tiny.model(**inputs).logits)[0] <= FAMILIES[name].limit


@pytest.mark.parametrize(
    "name", ["granite_docling", "granite4_vision", "mistral3", "gemma4", "gemma3n"]
)
def test_a_further_turn_is_that_of_transformers(made, processor, prompt, photo, name):
    tiny, reply = made(name, FAMILIES[name].answered), "A pot of flowers."
    image, checkpoint = tiny.plan.host.image, tiny.planned.checkpoint
    own, options = processor(checkpoint.folder), checkpoint.family.processor_options(image)
    messages = prompt.chat(QUESTION, images=1)
    messages += [{"role": "assistant", "content": [{"type": "text", "text": reply}]}]
    messages += prompt.chat("Which colour?")
    text = own.apply_chat_template(messages, add_generation_prompt=True)
    picture = photo(image.columns * image.width, image.rows * image.height)
    inputs = own(text=text, images=[picture], add_special_tokens=False, **options)
    ours, token = prompt(tiny), tiny.model.config.image_token_id
    ids = ours.ids(QUESTION, 1, token)
    ids += ours.tokenizer.encode(reply, add_special_tokens=False).ids
    ids += ours.ids("Which colour?", 0, token, turn=True)
    assert ids == list(inputs["input_ids"][0])


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_any_size_becomes_what_the_processor_makes_of_it(made, photo, name):
    tiny = made(name)
    spec, checkpoint = tiny.plan.host.image, tiny.planned.checkpoint
    if library := missing_library(checkpoint):
        pytest.skip(f"its image processor needs {library}")
    errors = {
        size: preprocessing_error(checkpoint, spec, photo(*size), middle=False) for size in SIZES
    }
    assert max(errors.values()) <= FAMILIES[name].pixels, errors


@pytest.fixture
def exported_family(preset, tmp_path):
    """A family's bundle, verified; `options` are those of a recipe."""
    from edgevlm.pipeline import export
    from edgevlm.recipe import Recipe

    def make(name, **options):
        family = FAMILIES[name]
        options = family.shapes[family.answered] | options
        recipe = Recipe(model=str(preset(family.preset)), **options)
        return export(recipe, tmp_path / "tiny.edgevlm")

    return make


# Their graphs are made of what others of these, LLaVA-NeXT (test_matrix.py), test_lfm2_vl.py,
# test_qwen3_5.py, test_qwen_vl.py (features of levels) and test_gemma3n.py (shared caches, a second
# table) export by default, and of `OWN_STAGES`.
LIKE_OTHERS = (
    "llava",
    "paligemma",
    "gemma3",
    "gemma4",
    "granite4_vision",
    "vipllava",
    "granite_docling",
    "granite_docling_fine",
    "mistral3",
    "lfm2_vl",
    "qwen3_5",
    "minicpmv4_6",
    "minicpmv4_7",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LIKE_OTHERS else ()) for n in NAMES],
)
def test_a_greedy_answer_is_that_of_generate(made, exported_family, processor, prompt, photo, name):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from edgevlm import api

    tiny, done = made(name, FAMILIES[name].answered), exported_family(name)
    assert done.verification.ok
    image, checkpoint = tiny.plan.host.image, tiny.planned.checkpoint
    picture = photo(image.columns * image.width, image.rows * image.height)
    own, options = processor(checkpoint.folder), checkpoint.family.processor_options(image)
    inputs = prompt.inputs(own, QUESTION, [picture], **options)
    whole = tiny.model.generate(**inputs, max_new_tokens=32, do_sample=False)[0].tolist()
    answer = api.load(done.bundle.path).generate(picture, QUESTION, max_new_tokens=32)
    assert list(answer.token_ids) == whole[inputs.input_ids.shape[1] :]
    if tiny.plan.host.layout.mixes:
        parts = ["Is", picture, "like", picture, "?"]
        inputs = prompt.mixed(own, parts, "Be brief.", **options)
        whole = tiny.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
        model = api.load(done.bundle.path)
        answer = model.generate(None, parts, system="Be brief.", max_new_tokens=8)
        assert list(answer.token_ids) == whole[inputs.input_ids.shape[1] :]


OWN_STAGES = [
    ("minicpmv4_6", "vision"),
    ("granite4_vision", "vision"),
    ("vipllava", "vision"),
    ("gemma3", "vision"),
    ("gemma4", "vision"),
    ("gemma4", "decoder"),
]


@pytest.mark.parametrize(("name", "stage"), OWN_STAGES)
def test_a_stage_of_its_own_is_in_onnx_what_it_is_in_pytorch(made, tmp_path, name, stage):
    """A call of the encoder, or of a single row; the other stages are as those of other families.

    The row is behind the windows of layers: places, masks and caches count.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    to_onnx = pytest.importorskip("edgevlm.exporters.to_onnx.target")
    from edgevlm.exporters.contract import TargetOptions
    from edgevlm.graphs.trace import trace, weights
    from edgevlm.runtimes.loops.sequence import causal_mask

    tiny, place, generator = made(name), 30, torch.Generator().manual_seed(0)
    parts = tiny.planned.parts(tiny.model)  # with features of levels
    for planned in tiny.plan.stage(stage):
        function = planned.functions[-1]
        block = replace(planned, functions=(function,))
        module = tiny.planned.build(block, parts)
        programs = {function.name: trace(module, function, block)}
        lowered = to_onnx.lower(programs, block, TargetOptions("none"))
        (written,) = to_onnx.write(lowered, block, weights(module), tmp_path, None)
        inputs = {t.name: torch.randn(t.shape, generator=generator) for t in function.inputs}
        if stage == "decoder":
            mask = causal_mask(place, 1, inputs["mask"].shape[-1])
            inputs["mask"] = torch.from_numpy(mask).reshape(inputs["mask"].shape)
            inputs["position"] = torch.tensor([place], dtype=torch.int32)
            for table in (t.name for t in function.inputs if t.name.startswith(("cos", "sin"))):
                half = inputs[table].chunk(2, -1)[0]  # both halves are alike
                inputs[table] = torch.cat([half, half], -1)
        session = onnxruntime.InferenceSession(tmp_path / written.file)
        found = session.run(
            [t.name for t in function.outputs],
            {t.name: inputs[t.name].numpy() for t in written.inputs},
        )
        expected = module(*(x.clone() for x in inputs.values()))
        expected = expected if isinstance(expected, tuple) else (expected,)
        errors = {}
        for output, mine, theirs in zip(function.outputs, found, expected, strict=True):
            assert mine.shape == theirs.shape == output.shape
            # Of caches that are no shared buffer, the rows up to this one.
            seen = slice(place + 1 if output.name.startswith("present") else None)
            errors[output.name] = difference(mine[..., seen, :], theirs.numpy()[..., seen, :])[0]
        assert max(errors.values()) <= LIMIT, errors


@pytest.mark.slow
@pytest.mark.parametrize("site", ["all", "tokens", "vision", "decoder"])
@pytest.mark.parametrize("target", ["onnx", "executorch", "coreml", "openvino"])
@pytest.mark.parametrize("name", NAMES)
def test_targets_and_methods_agree_with_pytorch(exported_family, made, name, target, site):
    described = made(name, FAMILIES[name].answered).planned.description
    half, patches = described.shape.tokens // 2, described.encoder.patches * 3 // 4
    methods = {
        "all": "identity",
        "tokens": "divprune",
        "vision": f"tome@vision:patches={patches},by=2",
        "decoder": f"dart@decoder:tokens={half},layer=1",
    }
    options = {"target": target, "methods": (methods[site],)}
    options["tokens"] = half if site == "tokens" else None
    if site in FAMILIES[name].refused:
        with pytest.raises(PlanError, match=FAMILIES[name].refused[site]):
            exported_family(name, **options)
        return
    done = exported_family(name, **options)
    assert done.verification.ok


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_core_ml_computes_in_float16(exported_family, made, name):
    """States of recurrent layers stay float32; each block and the logits reach 55 dB."""
    made(name)
    assert exported_family(name, target="coreml", quantize="fp16").verification.ok
