"""Checkpoints of encoders whose files do not fit each other are refused by the plan, in a line."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from edgevlm.errors import EdgeVLMError, ModelError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

CONFIG, PICTURES = "config.json", "preprocessor_config.json"
TOKENIZER, WORDS = "tokenizer.json", "tokenizer_config.json"
SQUARE = {"height": 56, "width": 56}


@pytest.fixture
def edited(preset, tmp_path):
    """`edited(name, file, values)`: a copy of a tiny model; values of objects are merged."""

    def edit(name, file, values):
        folder = shutil.copytree(preset(name), tmp_path / name)
        document = json.loads((folder / file).read_text())
        for key, value in values.items():
            merged = isinstance(value, dict) and isinstance(document.get(key), dict)
            document[key] = document[key] | value if merged else value
        (folder / file).write_text(json.dumps(document))
        return folder

    return edit


def planned(folder):
    """The plan of a folder."""
    return make_plan(Recipe(model=str(folder)), find(str(folder))).plan


def refused(folder):
    """The line that a folder is refused with."""
    with pytest.raises(EdgeVLMError) as caught:
        planned(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "values", "message"),
    [
        # views of the processor that are not the encoder's
        ("tiny-siglip", CONFIG, {"vision_config": {"image_size": 65}}, "views of 65 pixels"),
        ("tiny-siglip", PICTURES, {"size": {"height": 32, "width": 32}}, "64 pixels alone"),
        ("tiny-siglip", PICTURES, {"size": {"height": 64, "width": 48}}, "64 pixels alone"),
        ("tiny-siglip", PICTURES, {"size": 64}, "views of 96x64 pixels, and the encoder reads 64x"),
        ("tiny-siglip", PICTURES, {"size": "x"}, "set size to 64"),
        ("tiny-siglip", PICTURES, {"do_resize": False}, "do_resize false"),
        ("tiny-clip", CONFIG, {"vision_config": {"image_size": 60}}, "views of 60 pixels"),
        ("tiny-clip", PICTURES, {"crop_size": {"height": 48, "width": 48}}, "56 pixels alone"),
        ("tiny-clip", PICTURES, {"do_center_crop": False}, "crops nothing"),
        ("tiny-siglip2", PICTURES, {"patch_size": 4}, "cuts patches of 4 pixels"),
        ("tiny-siglip", PICTURES, {"image_processor_type": "Nope"}, "own image processor fails"),
        # numbers that nothing can be computed with
        ("tiny-siglip", CONFIG, {"vision_config": {"patch_size": 100}}, "larger than the view of"),
        ("tiny-clip", CONFIG, {"text_config": {"layer_norm_eps": None}}, "clip_text_model is None"),
        ("tiny-siglip", CONFIG, {"vision_config": {"layer_norm_eps": -1.0}}, "number above 0"),
        ("tiny-siglip2", PICTURES, {"max_num_patches": -4}, "max_num_patches -4"),
        ("tiny-siglip2", PICTURES, {"max_num_patches": 0}, "max_num_patches 0"),
        ("tiny-siglip2", PICTURES, {"max_num_patches": 10**10}, "of 1 to 16384 patches"),
        ("tiny-siglip2", PICTURES, {"max_num_patches": "x"}, "max_num_patches x"),
        ("tiny-siglip", PICTURES, {"image_std": [0, 1, 1]}, "expected 1e-06 to 1e+06"),
        ("tiny-siglip", PICTURES, {"image_mean": [float("nan")] * 3}, "image_mean is [nan,"),
        ("tiny-siglip", PICTURES, {"image_mean": 1e308}, "expected -1e+06 to 1e+06"),
        # tokens that are not those that the model reads
        ("tiny-clip", CONFIG, {"text_config": {"eos_token_id": None}}, "eos_token_id is None"),
        ("tiny-clip", CONFIG, {"text_config": {"eos_token_id": [1023, 5]}}, "[1023, 5], expected"),
        ("tiny-clip", CONFIG, {"text_config": {"eos_token_id": 5}}, "the model reads token 5"),
        ("tiny-clip", TOKENIZER, {"post_processor": None}, "ends a text with no token"),
        ("tiny-siglip", WORDS, {"model_input_names": ["input_ids", "attention_mask"]}, "padding"),
        ("tiny-siglip", WORDS, {"tokenizer_class": 3}, "own tokenizer cannot be loaded"),
        ("tiny-siglip", WORDS, {"pad_token": "<none>"}, "fills texts up with 5000"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(edited, name, file, values, message):
    folder = edited(name, file, values)
    if message.endswith("5000"):  # what fills up where the tokenizer has no such token
        config = json.loads((folder / CONFIG).read_text())
        config["text_config"]["pad_token_id"] = 5000
        (folder / CONFIG).write_text(json.dumps(config))
    assert message in refused(folder)


@pytest.mark.parametrize("content", [None, "{}"])
@pytest.mark.parametrize("name", ["tiny-siglip", "tiny-clip", "tiny-siglip2"])
def test_without_an_image_processor_nothing_is_assumed(preset, tmp_path, name, content):
    folder = shutil.copytree(preset(name), tmp_path / name)
    (folder / PICTURES).unlink()
    if content:
        (folder / PICTURES).write_text(content)
    assert "preprocessor_config.json is missing or empty" in refused(folder)


def test_without_a_tokenizer_config(preset, tmp_path):
    folder = shutil.copytree(preset("tiny-siglip"), tmp_path / "bare")
    (folder / WORDS).unlink()
    assert "own tokenizer cannot be loaded, see tokenizer_config.json" in refused(folder)


def add_token_1024(folder):
    """A token more than the model's table has rows."""
    document = json.loads((folder / TOKENIZER).read_text())
    document["added_tokens"].append({
        "id": 1024, "content": "<zz>", "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    })  # fmt: skip
    (folder / TOKENIZER).write_text(json.dumps(document))


def test_a_token_without_a_row(preset, tmp_path):
    folder = shutil.copytree(preset("tiny-siglip"), tmp_path / "large")
    add_token_1024(folder)
    assert "has tokens up to 1024" in refused(folder)


@pytest.mark.parametrize("name", ["tiny-siglip", "tiny-clip"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1000.0, -1000.0])
def test_a_factor_that_is_no_number(preset, tmp_path, name, value):
    folder = shutil.copytree(preset(name), tmp_path / name)
    weights = load_file(folder / "model.safetensors")
    weights["logit_scale"] = torch.full_like(weights["logit_scale"], value)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert f"the weight 'logit_scale' is {value:g}" in refused(folder)


def test_a_shift_that_is_no_number(preset, tmp_path):
    folder = shutil.copytree(preset("tiny-siglip"), tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    weights["logit_bias"] = torch.full_like(weights["logit_bias"], float("inf"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "the weight 'logit_bias' is inf" in refused(folder)


def test_an_old_config_reads_the_highest_token(edited):
    """transformers reads the token of the highest number where eos_token_id is 2."""
    folder = edited("tiny-clip", CONFIG, {"text_config": {"eos_token_id": 2}})
    assert planned(folder).host.text.end_id == 1023
    add_token_1024(folder)
    assert "ends a text with token 1023, and the model reads token 1024" in refused(folder)


def test_a_processor_may_stretch_where_its_family_crops(edited):
    folder = edited("tiny-clip", PICTURES, {"size": SQUARE})
    document = json.loads((folder / PICTURES).read_text())
    (folder / PICTURES).write_text(json.dumps(document | {"size": SQUARE}))  # without shortest_edge
    assert planned(folder).host.image.fit == "stretch"


def test_published_and_sample_tokenizers_give_no_mask(preset):
    for name in ("tiny-siglip", "tiny-siglip2"):
        document = json.loads((preset(name) / WORDS).read_text())
        assert document["model_input_names"] == ["input_ids"]


def test_errors_name_the_model(preset, tmp_path):
    folder = shutil.copytree(preset("tiny-siglip"), tmp_path / "named")
    (folder / PICTURES).unlink()
    with pytest.raises(ModelError, match=str(folder)):
        planned(folder)
