"""The gate of an encoder: every check passes on what is right, and fails on what is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from edgevlm.models.find import find  # noqa: E402
from edgevlm.parity.encoder import EncoderVerification  # noqa: E402
from edgevlm.parity.verify import PHOTOS, verify_model  # noqa: E402
from edgevlm.pipeline import export  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

NAMES = ["tiny-siglip", "tiny-clip", "tiny-siglip2"]


@pytest.fixture
def verified(embedder, preset):
    """The verification of a tiny bundle against a model that may be changed first."""

    def check(name="tiny-siglip", change=lambda model: None, photos=PHOTOS):
        bundle = embedder(name).bundle
        planned = make_plan(bundle.plan.recipe, find(str(preset(name))))
        model = planned.checkpoint.load_model()
        change(model)
        parts = planned.parts(model)
        return verify_model(bundle, planned, model, parts, lambda _: None, photos)

    return check


@pytest.mark.parametrize("name", NAMES)
def test_both_embeddings_are_the_models(embedder, name):
    found = embedder(name).verification
    assert isinstance(found, EncoderVerification)
    assert found.ok
    assert max(found.image_rel_error, found.text_rel_error) < 1e-4
    assert found.token_ids_equal == 1.0
    assert found.preprocessing_error < 1e-6
    assert found.logits_rel_error < 1e-5
    assert {check.name for check in found.checks} >= {
        "token_ids_equal", "preprocessing_error", "vision embedding", "text embedding",
        "vision sensitivity", "text sensitivity", "logits_per_image",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (lambda m: m.vision_model.head.probe.mul_(-3), "vision-3.encode differs from PyTorch"),
        (lambda m: m.text_model.head.bias.add_(1), "text-1.encode differs from PyTorch"),
        (
            lambda m: m.text_model.embeddings.token_embedding.weight.mul_(2),
            "the embeddings of stage 'text' differ from PyTorch's",
        ),
        (lambda m: m.logit_scale.add_(0.01), "host.scale and host.bias make other logits"),
        (lambda m: m.logit_bias.add_(0.01), "host.scale and host.bias make other logits"),
    ],
)
def test_another_model_is_told_apart(verified, change, failure):
    found = verified(change=torch.no_grad()(change))
    assert not found.ok
    assert failure.split("-")[0] in found.first_failure()


def test_the_same_photo_twice_shows_nothing(verified):
    found = verified(photos=(PHOTOS[0], PHOTOS[0]))
    assert not found.ok
    assert "embeddings of stage 'vision' change by 0.000" in found.first_failure()


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("tiny-siglip", "coreml"),
        ("tiny-clip", "executorch"),
        pytest.param("tiny-clip", "coreml", marks=pytest.mark.slow),
        pytest.param("tiny-siglip", "executorch", marks=pytest.mark.slow),
    ],
)
def test_other_targets(preset, tmp_path, target, name):
    pytest.importorskip({"coreml": "coremltools", "executorch": "executorch"}[target])
    recipe = Recipe(model=str(preset(name)), target=target)
    found = export(recipe, tmp_path / "other.edgevlm").verification
    assert found.ok
    assert max(found.image_rel_error, found.text_rel_error) < 1e-4


@pytest.mark.parametrize(
    "asked",
    [
        {"quantize": "fp16"},
        {"quantize": "w8a8s,text=w4g32a32", "calibrate": "2"},
        {"methods": ("tome@vision:r=8",)},
        {"methods": ("tome@vision:r=8",), "quantize": "w8a8"},
    ],
    ids=str,
)
def test_schemes_and_methods(preset, lowered_once, tmp_path, asked):
    recipe = Recipe(model=str(preset("tiny-siglip")), **asked)
    found = lowered_once(recipe, tmp_path / "other.edgevlm").verification
    assert found.ok
    assert found.exact == ("quantize" not in asked)


def test_calibration_sees_the_parts_of_a_larger_matrix(preset, lowered_once, tmp_path):
    """SigLIP's head has its keys and values in one matrix of the model."""
    recipe = Recipe(model=str(preset("tiny-siglip")), quantize="w8a8s", calibrate=str(photos()))
    found = lowered_once(replace(recipe, quantize="none,vision=w8a8s"), tmp_path / "a.edgevlm")
    assert found.verification.ok


def photos() -> Path:
    """The folder of the packaged photos."""
    return PHOTOS[0].parent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip2-base-patch16-224", "clip-vit-base-patch32"])
def test_true_size(preset, tmp_path, command, name):
    """Both embeddings, and a budget of half the weights as a process of its own."""
    done = export(Recipe(model=str(preset(name))), tmp_path / "true.edgevlm")
    assert max(done.verification.image_rel_error, done.verification.text_rel_error) < 1e-4
    budget = done.bundle.plan.weights_bytes // 2
    ran = command(
        "run", done.bundle.path, "--image", PHOTOS[0], "--labels", "a dog,a flower",
        "--memory", f"{budget // 10**6}MB", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["peak_rss_bytes"] <= budget


@pytest.mark.slow
def test_eight_bits_at_true_size(preset, tmp_path):
    recipe = Recipe(model=str(preset("siglip2-base-patch16-224")), quantize="w8a8s", calibrate="4")
    assert export(recipe, tmp_path / "true.edgevlm").verification.ok
