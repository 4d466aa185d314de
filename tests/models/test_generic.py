"""Model types without a family file: what the generic path makes of them, and how it refuses."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevlm.errors import ModelError, PlanError, TraceError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.generic import family  # noqa: E402
from edgevlm.models.generic.encoder import traced  # noqa: E402
from edgevlm.models.weights.loading import built  # noqa: E402
from edgevlm.parity.checks import forward_check  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.parity.own.forward import forward_rel_error  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

UNLISTED = ("tiny-vipllava", "tiny-janus", "tiny-deepseek-vl")
QUESTION = "What is in this picture, and why?"


@pytest.fixture
def changed(preset, tmp_path):
    """`changed({file: edit})`: the folder of ViP-LLaVA with other numbers in its files."""

    def make(**edits):
        folder = shutil.copytree(preset("tiny-vipllava"), tmp_path / "changed")
        for name, edit in edits.items():
            path = folder / f"{name}.json"
            document = json.loads(path.read_text())
            edit(document)
            path.write_text(json.dumps(document))
        return str(folder)

    return make


def planned(folder, **options):
    return make_plan(Recipe(model=folder, **options), find(folder))


@pytest.mark.parametrize("name", UNLISTED)
def test_it_is_planned_and_says_which_path_it_takes(tiny, name):
    made = tiny(name)
    plan, kind = made.plan, made.model.config.model_type
    assert plan.source.family == f"{kind}, by the generic path"
    assert made.planned.notes[0].startswith(f"generic path: '{kind}' has no family file")
    assert [block.name for block in plan.stage("vision")] == ["vision-0"]
    assert plan.host.visual_tokens == 64


def test_what_a_processor_does_with_other_shapes_is_said(tiny):
    assert len(tiny("tiny-vipllava").planned.notes) == 1  # it crops, as we do
    (_, padded) = tiny("tiny-janus").planned.notes
    assert padded.startswith("a picture is stretched to 56x56 pixels; of one that is not square")


@pytest.mark.parametrize("name", UNLISTED)
def test_its_parts_together_are_the_models_own_forward(
    tiny, processor, prompt, photo, decoder_difference, name
):
    made = tiny(name)
    picture = photo(56, 56)
    inputs = prompt.inputs(processor(made.planned.checkpoint.folder), QUESTION, [picture])
    ours = prompt(made)
    token = made.model.config.image_token_id
    assert ours.ids(QUESTION, 1, token) == inputs.input_ids[0].tolist()
    features = made.features(made.views(picture))
    rows = ours.rows(QUESTION, [features])
    assert difference(ours.logits(rows), made.model(**inputs).logits)[0] <= 1e-5
    assert decoder_difference(made) <= 1e-5


def test_the_encoder_has_no_weights_that_it_does_not_use(tiny):
    """Not the language model's, nor those of what draws pictures, nor of CLIP's last norm."""
    for name in UNLISTED:
        made = tiny(name)
        used = set(dict(made.parts.encoder.embedding.named_parameters()))
        assert not [key for key in used if "language_model" in key or "vqmodel" in key]
    last = "model.vision_tower.post_layernorm.weight"
    assert last not in dict(tiny("tiny-vipllava").parts.encoder.embedding.named_parameters())


def test_what_the_models_forward_does_beside_its_parts_is_seen(tiny, photo, monkeypatch):
    made = tiny("tiny-vipllava")
    given = made.planned, made.model, made.parts, made.planned.speller.bundled, QUESTION
    assert forward_check(forward_rel_error(*given, photo(80, 60))).ok
    own = family.reference_logits

    def other(model, pixel_values, ids, description):
        return own(model, 2 * pixel_values, ids, description)

    monkeypatch.setattr(family, "reference_logits", other)
    check = forward_check(forward_rel_error(*given, photo(80, 60)))
    assert not check.ok
    assert check.text.startswith("of a picture and a question the model's own forward gives other")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("visionzip", "visionzip needs the signal 'cls_attention', which this encoder cannot give"),
        ("tome@vision:r=2", "tome at site vision merges tokens .* and here they cannot"),
    ],
)
def test_methods_that_need_its_layers_are_refused_by_name(preset, method, reason):
    with pytest.raises(PlanError, match=f"{reason}: the generic path takes the encoder as one"):
        planned(str(preset("tiny-vipllava")), tokens=16, methods=(method,))


def test_methods_on_features_alone_are_not(preset):
    plan = planned(str(preset("tiny-vipllava")), tokens=16, methods=("dart:tokens=8,layer=1",)).plan
    assert [site.tokens_out for site in plan.sites] == [16, 8]


REFUSALS = {
    "language model": (
        {"config": lambda config: config["text_config"].update(model_type="olmo2")},
        "language model 'olmo2' is not supported",
    ),
    "view": (
        {"preprocessor_config": lambda numbers: numbers.update(do_center_crop=False)},
        r"its processor makes pixel_values \[1, 3, 56, \d+\] of a wide picture and",
    ),
    "numbers": (
        {"preprocessor_config": lambda numbers: numbers.update(do_resize=False)},
        "its processor does more with a picture than to resize, crop and scale",
    ),
    "tokens": (
        {"processor_config": lambda numbers: numbers.update(num_additional_image_tokens=0)},
        "its processor writes 63 tokens '<image>' for a picture, its encoder gives 64",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_has_the_reason_the_nearest_family_and_where_to_read(changed, case):
    edits, reason = REFUSALS[case]
    with pytest.raises(PlanError, match=reason) as refused:
        planned(changed(**edits))
    line = str(refused.value)
    assert line.startswith("model_type 'vipllava' has no family file, and the generic path cannot")
    shared = "clip_vision_model" if case == "language model" else "clip_vision_model and a llama"
    assert f"the nearest family is 'llava', which has a {shared} too" in line
    assert line.endswith("docs/add-a-family.md has an example of a file")
    assert "\n" not in line


def test_a_graph_that_no_target_takes_is_refused_by_its_trace():
    """GOT-OCR 2 cuts windows in six dimensions."""
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32,
              "image_size": 64, "window_size": 2, "global_attn_indexes": [1]}  # fmt: skip
    config = transformers.AutoConfig.for_model("got_ocr2", text_config=text, vision_config=vision)
    empty = built(family.AUTO_CLASS, config).eval()
    with pytest.raises(TraceError, match=r"get_image_features: '.*' has 6 dimensions"):
        traced(empty, 64, 64)


def test_an_encoder_that_asks_for_more_than_pixels_is_refused():
    config = transformers.AutoConfig.for_model("lfm2_vl")
    with pytest.raises(PlanError, match="asks for spatial_shapes, pixel_attention_mask beside"):
        traced(built(family.AUTO_CLASS, config).eval(), 64, 64)


def test_tiles_and_unknown_types_are_refused_as_before(preset, changed):
    with pytest.raises(PlanError, match="vipllava, by the generic path reads a picture as one"):
        planned(str(preset("tiny-vipllava")), tiles=(2, 2))
    folder = changed(config=lambda config: config.update(model_type="llavva"))
    with pytest.raises(ModelError, match="unknown model family 'llavva'; did you mean 'llava'"):
        find(folder)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "executorch", "coreml", "openvino"])
@pytest.mark.parametrize("name", UNLISTED)
def test_targets_agree_with_pytorch(preset, tmp_path, run, name, target):
    from edgevlm.pipeline import export

    recipe = Recipe(model=str(preset(name)), target=target, tokens=16)
    bundle = tmp_path / "tiny.edgevlm"
    assert export(recipe, bundle).verification.ok
    assert "by the generic path" in run("inspect", bundle).stdout


def test_a_plan_traces_the_encoder_once_and_loads_its_processor_once(preset, monkeypatch):
    calls = []
    for name in ("traced", "_processor"):
        own = getattr(family, name)
        counted = lambda *given, name=name, own=own: calls.append(name) or own(*given)  # noqa: E731
        monkeypatch.setattr(family, name, counted)
    made = planned(str(preset("tiny-vipllava")))
    assert made.parts(made.checkpoint.empty_model()).encoder.spec.patches == 64
    assert len(made.notes) == 1
    assert sorted(calls) == ["_processor", "traced"]


def test_what_an_encoder_raises_is_said_in_words():
    """Idefics 2 has pictures of five dimensions."""
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model("idefics2")
    for part in (config.vision_config, config.text_config):
        for key, value in small.items():
            setattr(part, key, value)
    with pytest.raises(PlanError) as error:
        traced(built(family.AUTO_CLASS, config).eval(), 64, 64)
    assert str(error.value) == (
        "get_image_features does not run on pixel_values [1, 3, 64, 64] alone"
    )
