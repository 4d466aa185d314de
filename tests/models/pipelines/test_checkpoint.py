"""What is found in a pipeline's folder is read with suspicion; each refusal is one line."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import safetensors.torch  # noqa: E402

from edgevlm.errors import EdgeVLMError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.planning.plan import make_plan, plan_with_weights  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

SMALL = {"frames": 5, "size": (32, 48), "steps": 2}


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A copy of the tiny pipeline, to be damaged."""
    shutil.copytree(tiny_pipeline, tmp_path / "p")
    return tmp_path / "p"


def edit(path, **values):
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | values))


def refused(folder, **recipe):
    asked = Recipe(model=str(folder), **(SMALL | recipe))
    with pytest.raises(EdgeVLMError) as caught:
        plan_with_weights(asked, find(str(folder)))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


INDEXES = [
    ({"_class_name": "StableDiffusionPipeline"}, "unknown pipeline 'StableDiffusionPipeline'"),
    ({"_class_name": 3}, "unknown pipeline '3'"),
    ({"transformer": ["os", "system"]}, "transformer is os.system, expected diffusers.Wan"),
    ({"vae": None}, "vae is None, expected diffusers.AutoencoderKLWan"),
    ({"boundary_ratio": 0.9}, "has two denoisers"),
    ({"expand_timesteps": True}, "a timestep for each token"),
]


@pytest.mark.parametrize(("values", "why"), INDEXES)
def test_another_index(folder, values, why):
    edit(folder / "model_index.json", **values)
    assert why in refused(folder)


CONFIGS = [
    ("transformer", {"num_layers": 10**9}, "num_layers is 1000000000, expected 1 to 1024"),
    ("transformer", {"num_layers": 2}, "has no place in the model of config.json"),
    ("transformer", {"num_layers": 4}, "it lacks"),
    ("transformer", {"ffn_dim": 65}, "is [64, 48] in the file and [65, 48] by config.json"),
    ("transformer", {"image_dim": 1280}, "image to video"),
    ("transformer", {"num_attention_heads": "x"}, "num_attention_heads is"),
    ("vae", {"is_residual": True}, "Wan 2.2"),
    ("vae", {"latents_std": []}, "latents_std has 0 numbers, expected z_dim"),
    ("text_encoder", {"d_model": 33}, "text_encoder: weight"),
    ("scheduler/scheduler", {"_class_name": "DDIMScheduler"}, "'DDIMScheduler' has no sampler"),
    ("scheduler/scheduler", {"solver_order": 3}, "solver_order is 3, expected 2"),
    ("scheduler/scheduler", {"prediction_type": "epsilon"}, "prediction_type is 'epsilon'"),
]


@pytest.mark.parametrize(("part", "values", "why"), CONFIGS, ids=[c[2] for c in CONFIGS])
def test_another_config(folder, part, values, why):
    name = f"{part}_config.json" if "/" in part else f"{part}/config.json"
    edit(folder / name, **values)
    assert why in refused(folder)


@pytest.mark.parametrize("name", ["vae/config.json", "scheduler/scheduler_config.json",
                                  "tokenizer/tokenizer.json"])  # fmt: skip
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert f"has no {name}" in refused(folder)


def test_weights_that_are_missing_or_damaged(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["blocks.0.ffn.net.2.weight"][0, 0] = float("nan")
    safetensors.torch.save_file(weights, path)
    assert "weight 'blocks.0.ffn.net.2.weight' of transformer holds nan" in refused(folder)
    path.write_bytes(path.read_bytes()[:-100])
    assert "transformer: diffusion_pytorch_model.safetensors is damaged" in refused(folder)
    path.unlink()
    assert "transformer has no safetensors weights" in refused(folder)
    planned = make_plan(Recipe(model=str(folder), **SMALL), find(str(folder)))
    assert planned.notes  # a plan does without weights, and says so


RECIPES = [
    ({"frames": 6}, "6 frames make no whole latent frames"),
    ({"size": (30, 48)}, "height and width must be multiples of 16 and 16, such as 32x48"),
    ({"size": (4096, 48)}, "rope_max_seq_len"),
    ({"tokens": 5}, "--tokens is for models that read pictures"),
    ({"methods": ("divprune",)}, "--method is for models that read pictures"),
    ({"layers": 1}, "--layers is for models that read pictures"),
    ({"quantize": "head=w8a32"}, "'head' is not a stage with weights"),
    ({"rules": ("nothing",)}, "unknown rule 'nothing'"),
    ({"leap": 3}, "rule 'leap': after is 3, of 2 steps"),
]


@pytest.mark.parametrize(("values", "why"), RECIPES, ids=[r[1] for r in RECIPES])
def test_a_recipe_without_a_video(tiny_pipeline, values, why):
    assert why in refused(tiny_pipeline, **values)
