"""Largest inputs of linear layers: from pictures of a folder, questions, the embedded dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from edgevlm.errors import EdgeVLMError, InputError, RecipeError  # noqa: E402
from edgevlm.exporters.to_onnx.target import TARGET  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.quantization.calibrate import calibrate  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

PHOTOS = Path(__file__).resolve().parents[2] / "edgevlm" / "photos"


@pytest.fixture(scope="module")
def model(tiny_model):
    return find(tiny_model), find(tiny_model).load_model()


def tops(model, text, frames=1):
    """Of every linear layer that a calibration saw, by its name; what it said, too."""
    checkpoint, loaded = model
    said: list[str] = []
    recipe = Recipe(model=checkpoint.model, quantize="w8a8s", calibrate=text, frames=frames)
    found = calibrate(recipe, checkpoint, loaded, said.append)
    named = {name: p for name, p in loaded.named_parameters() if name.endswith("weight")}
    made = {name: float(top) for name, top in found.tops(named).items()}
    return made, said


@pytest.fixture
def folder(tmp_path):
    """Two pictures, and a file that is none."""
    shutil.copy(PHOTOS / "flower.jpg", tmp_path)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_every_layer_is_seen_and_more_pictures_only_add(model, folder):
    both, said = tops(model, str(folder))
    assert said == ["calibrate: scene 1", "calibrate: scene 2"]
    layers = [n for n, m in model[1].named_modules() if isinstance(m, torch.nn.Linear)]
    assert {name.removesuffix(".weight.top") for name in both} == {*layers} - {"lm_head"}
    assert all(top > 0 for top in both.values())
    (folder / "flower.jpg").unlink()
    one, _ = tops(model, str(folder))
    assert all(one[name] <= top for name, top in both.items())
    assert one != both


def test_it_is_the_largest_number_that_came_in(model, folder):
    seen = []
    layer = model[1].model.text_model.layers[0].self_attn.q_proj
    hook = layer.register_forward_pre_hook(lambda _, x: seen.append(float(x[0].abs().max())))
    found, _ = tops(model, str(folder))
    hook.remove()
    assert found["model.text_model.layers.0.self_attn.q_proj.weight.top"] == max(seen)
    assert len(seen) >= 2
    assert not layer._forward_pre_hooks  # nothing is left on the model


def test_questions_of_a_file_and_scenes_of_the_dataset(model, folder):
    line = {"image": "flower.jpg", "prompt": "What is this?", "answer": "a flower"}
    (folder / "asked.jsonl").write_text(json.dumps(line) + "\n")
    assert len(tops(model, str(folder / "asked.jsonl"))[1]) == 1
    assert len(tops(model, "3")[1]) == 3
    assert len(tops(model, str(folder), frames=4)[1]) == 2  # a clip that stands still


def test_what_cannot_be_used_is_one_line(model, tmp_path, tiny_model):
    with pytest.raises(InputError, match="has no image to calibrate with"):
        tops(model, str(tmp_path))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(EdgeVLMError, match=r"broken\.png"):
        tops(model, str(tmp_path))
    with pytest.raises(EdgeVLMError):
        tops(model, str(tmp_path / "nothing.jsonl"))
    for wrong in ("0", "", "00"):
        with pytest.raises(RecipeError, match="calibrate must be a number from 1 or a path"):
            Recipe(calibrate=wrong)
    (scheme,) = TARGET.calibrated
    with pytest.raises(RecipeError, match="add --calibrate N or --calibrate PATH"):
        make_plan(Recipe(model=tiny_model, quantize=f"decoder={scheme}"), find(tiny_model))
    with pytest.raises(RecipeError, match="nothing to calibrate in 'w8a8'"):
        make_plan(Recipe(model=tiny_model, quantize="w8a8", calibrate="4"), find(tiny_model))
