"""SigLIP, SigLIP 2 and CLIP: our static modules against transformers' own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.graphs.embedders import AttentionPooling, CausalLayer, GridPatches  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.parity.encoder import expected_ids  # noqa: E402
from edgevlm.parity.own.preprocessing import preprocessing_error  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

NAMES = ["tiny-siglip", "tiny-clip", "tiny-siglip2"]
# Float32 sums in another order; measured 1e-6.
LIMIT = 1e-5


@pytest.fixture(scope="module", params=NAMES)
def tiny(request, preset):
    """A plan, its model and its parts."""
    planned = make_plan(Recipe(model=str(preset(request.param))), find(str(preset(request.param))))
    model = planned.checkpoint.load_model()
    return planned, model, planned.parts(model)


def through(modules, x, *last):
    """What modules give one after another; the last takes more."""
    with torch.no_grad():
        for module in modules[:-1]:
            x = module(x)
        return modules[-1](x, *last)


def test_the_image_encoder_is_the_models_own(tiny):
    planned, model, parts = tiny
    image = planned.plan.host.image
    pixels = torch.rand(2, 3, image.height, image.width).mul(2).sub(1)
    ours = torch.cat([through(parts.encoder.modules, pixels[i : i + 1]) for i in (0, 1)])
    family = planned.checkpoint.family
    with torch.no_grad():
        theirs = family.reference_image(model, pixels, planned.description)
    assert ours.shape == (2, planned.plan.host.size)
    assert difference(ours.numpy(), theirs.numpy())[0] <= LIMIT
    assert difference(theirs[0].numpy(), theirs[1].numpy())[0] > 0.05  # or nothing was shown


def test_the_text_encoder_is_the_models_own(tiny):
    planned, model, parts = tiny
    host = planned.plan.host.text
    ids = torch.tensor(expected_ids(planned.checkpoint, host.tokens))
    with torch.no_grad():
        theirs = planned.checkpoint.family.reference_text(model, ids)
    ours = []
    for each in ids:
        end = (torch.tensor([each.tolist().index(host.end_id)]),) if host.reads_end else ()
        ours.append(through(parts.text.modules, parts.text.table[each][None], *end))
    assert difference(torch.cat(ours).numpy(), theirs.numpy())[0] <= LIMIT
    assert difference(theirs[0].numpy(), theirs[1].numpy())[0] > 0.05


def test_scale_and_bias_are_the_models_own(tiny):
    planned, model, _ = tiny
    host = planned.plan.host
    assert host.scale == pytest.approx(float(model.logit_scale.exp()), rel=1e-6)
    bias = getattr(model, "logit_bias", torch.zeros(1))
    assert host.bias == pytest.approx(float(bias), rel=1e-6)


@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (224, 224)])
def test_preprocessing_is_that_of_the_processor(tiny, shape):
    planned, *_ = tiny
    noise = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
    picture = Image.fromarray(noise).resize(shape)
    spec, naflex = planned.plan.host.image, planned.checkpoint.model_type == "siglip2"
    error = preprocessing_error(planned.checkpoint, spec, picture, middle=False)
    if naflex and shape[0] != shape[1]:
        assert error is None  # the processor keeps the picture's shape: another grid
        error = preprocessing_error(planned.checkpoint, spec, picture)
    assert error is not None
    assert error < 1e-6


def test_a_causal_layer_sees_no_later_token(preset):
    planned = make_plan(Recipe(model=str(preset("tiny-clip"))), find(str(preset("tiny-clip"))))
    layer = planned.parts(planned.checkpoint.load_model()).text.layers[0]
    assert isinstance(layer, CausalLayer)
    x = torch.rand(1, 16, 48)
    other = x.clone()
    other[0, 9:] += 1
    with torch.no_grad():
        first, second = layer(x), layer(other)
    assert torch.equal(first[0, :9], second[0, :9])
    assert not torch.equal(first[0, 9:], second[0, 9:])


def test_the_pooling_head_has_linear_layers_over_the_models_numbers(preset):
    planned = make_plan(Recipe(model=str(preset("tiny-siglip"))), find(str(preset("tiny-siglip"))))
    model = planned.checkpoint.load_model()
    head = planned.parts(model).encoder.connector
    assert isinstance(head, AttentionPooling)
    inside = model.vision_model.head.attention.in_proj_weight
    assert head.key.weight.data_ptr() == inside[64:128].data_ptr()  # a part of it, no copy
    assert head.value.weight.data_ptr() == inside[128:].data_ptr()


def test_positions_of_naflex_are_those_of_the_square_grid(preset):
    checkpoint = find(str(preset("tiny-siglip2")))
    planned = make_plan(Recipe(model=str(preset("tiny-siglip2"))), checkpoint)
    model = checkpoint.load_model()
    embedding = planned.parts(model).encoder.embedding
    assert isinstance(embedding, GridPatches)
    table = model.vision_model.embeddings.position_embedding.weight
    assert table.shape[0] == 16
    assert embedding.positions.shape[0] == 64  # 8x8, interpolated from 4x4


@pytest.mark.parametrize(
    ("name", "file", "edit", "message"),
    [
        ("tiny-siglip", "config.json", {"vision_config": {"vision_use_head": False}}, "no head"),
        ("tiny-siglip", "config.json", {"text_config": {"projection_size": 32}}, "of texts 32"),
        ("tiny-siglip", "config.json", {"vision_config": {"num_channels": 4}}, "4 colours"),
        ("tiny-siglip2", "preprocessor_config.json", {"max_num_patches": 60}, "only a square one"),
    ],
)
def test_what_has_no_static_form_is_refused(preset, tmp_path, name, file, edit, message):
    folder = shutil.copytree(preset(name), tmp_path / "changed")
    document = json.loads((folder / file).read_text())
    for key, value in edit.items():
        document[key] = document[key] | value if isinstance(value, dict) else value
    (folder / file).write_text(json.dumps(document))
    with pytest.raises(PlanError, match=message):
        make_plan(Recipe(model=str(folder)), find(str(folder)))


def test_a_method_of_site_vision_leaves_fewer_tokens(preset):
    recipe = Recipe(model=str(preset("tiny-clip")), methods=("tome@vision:r=8",))
    planned = make_plan(recipe, find(recipe.model))
    assert planned.plan.host.encoder.tokens == (50, 42, 34)
    plain = make_plan(replace(recipe, methods=()), find(recipe.model)).plan
    flops = [sum(f.flops for f in p.stage("vision")[0].functions) for p in (planned.plan, plain)]
    assert flops[0] < flops[1]
