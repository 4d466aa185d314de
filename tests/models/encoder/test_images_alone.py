"""Image encoders without a text encoder: embeddings of the whole model, and nothing of texts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
for _module in ("onnx_ir", "onnxscript", "onnxruntime"):
    pytest.importorskip(_module)

import edgevlm  # noqa: E402
from edgevlm.errors import InputError, PlanError  # noqa: E402
from edgevlm.libraries import silent  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.parity.verify import PHOTOS  # noqa: E402
from edgevlm.pipeline import export  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

CLASSES = {"tiny-siglip": "SiglipVisionModel", "tiny-clip": "CLIPVisionModelWithProjection"}


@pytest.fixture
def images_alone(preset, tmp_path):
    """`images_alone(name, class)`: what transformers saves of the image encoder of a tiny model."""

    def save(name, kind=None):
        folder = tmp_path / (kind or name)
        size = {"projection_dim": 32} if name == "tiny-clip" else {}  # of the whole model's config
        made_by = getattr(transformers, kind or CLASSES[name])
        with silent():
            model = made_by.from_pretrained(preset(name), **size)
        model.save_pretrained(folder)
        shutil.copy(preset(name) / "preprocessor_config.json", folder)
        return str(folder)

    return save


@pytest.mark.parametrize("name", CLASSES)
def test_embeddings_are_those_of_the_whole_model(images_alone, embedder, run, tmp_path, name):
    done = export(Recipe(model=images_alone(name)), tmp_path / "a.edgevlm")
    found = done.verification
    assert found.ok
    assert (found.text_rel_error, found.token_ids_equal, found.logits_rel_error) == (None,) * 3
    assert done.bundle.plan.host.text is None
    assert {block.stage for block in done.bundle.plan.blocks} == {"vision"}
    assert not list(done.bundle.path.glob("tokenizer.json"))
    ours = edgevlm.load(done.bundle.path, threads=1)
    whole = edgevlm.load(embedder(name).bundle.path, threads=1)
    embedding = np.asarray(whole.embed(PHOTOS[0]).embedding)
    assert np.abs(np.asarray(ours.embed(PHOTOS[0]).embedding) - embedding).max() < 1e-5
    with pytest.raises(InputError, match="the bundle has no text encoder; leave out the labels"):
        ours.classify(PHOTOS[0], ["a"])
    for command in ("verify", "inspect"):
        assert run(command, done.bundle.path).exit_code == 0
    refused = run("profile", done.bundle.path, "--prompt", "a", "--runs", 1)
    assert (refused.exit_code, refused.stderr.splitlines()[-1]) == (
        1, "edgevlm: the bundle has no text encoder; leave out the labels",
    )  # fmt: skip


def test_without_a_projection_there_is_no_embedding(images_alone):
    model = images_alone("tiny-clip", "CLIPVisionModel")
    with pytest.raises(PlanError, match="CLIPVisionModel has no projection, so it gives no emb"):
        make_plan(Recipe(model=model), find(model))


def test_a_head_that_is_off(images_alone):
    model = images_alone("tiny-siglip")
    path = find(model).folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vision_use_head": False}))
    with pytest.raises(PlanError, match="has no head"):
        make_plan(Recipe(model=model), find(model))
