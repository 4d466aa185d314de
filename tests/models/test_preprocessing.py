"""What an image processor says becomes numbers of the plan, or is refused with what to change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevlm.bundle.host import ImageSpec  # noqa: E402
from edgevlm.errors import ModelError, PlanError  # noqa: E402
from edgevlm.models.documents import check_config, check_processor, processor_numbers  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.shared.preprocessing import (  # noqa: E402
    check_view,
    defaults,
    fit,
    normalization,
)
from edgevlm.parity.own.preprocessing import preprocessing_error  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


@pytest.fixture
def edited_model(preset, tmp_path):
    """`edited_model("tiny-clip", do_normalize=False)`: a copy whose image processor says so."""

    def edit(name, **values):
        folder = shutil.copytree(preset(name), tmp_path / name)
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return str(folder)

    return edit


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False, "do_normalize": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["tiny-smolvlm", "tiny-llava-next", "tiny-clip", "tiny-siglip"])
def test_pixels_are_those_of_the_processor(edited_model, photo, name, values):
    once = {"size": {"longest_edge": 128}} if name == "tiny-smolvlm" else {}  # resized once
    checkpoint = find(edited_model(name, **values, **once))
    image = checkpoint.describe(Recipe()).image
    error = preprocessing_error(checkpoint, image, photo(image.width, image.height))
    assert error is not None
    assert error < 2e-6 / min(image.std)


def test_published_digits_of_the_factor_change_no_number():
    plain = normalization({"image_mean": MEAN, "image_std": STD}, 0.5, 0.5)
    assert plain == (tuple(MEAN), tuple(STD))
    assert normalization({"rescale_factor": 0.00392156862745098}, MEAN, STD) == plain


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"do_resize": False}, "do_resize false, and a bundle resizes every picture"),
        ({"size": 240}, "size is 240, and the encoder reads views of 224 pixels alone; set size"),
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, "size is {'shortest_edge': 256}"),
        ({"size": {"height": 224, "width": 448}}, "the encoder reads views of 224 pixels alone"),
        ({"size": 224, "crop_size": {"height": 200, "width": 200}}, "crop_size is {'height': 200"),
    ],
)
def test_views_that_are_not_the_encoders(processor, message):
    with pytest.raises(PlanError) as error:
        check_view(processor, 224, crops=True)
    assert message in str(error.value)
    assert "preprocessor_config.json" in str(error.value)


def test_a_crop_that_is_off_is_not_read():
    check_view({"size": 224, "crop_size": 200, "do_center_crop": False}, 224, crops=True)
    check_view({"size": 224, "crop_size": 200}, 224)


@pytest.mark.parametrize(
    ("processor", "crops", "expected"),
    [
        ({}, True, "crop"),
        ({}, False, "stretch"),
        ({"size": 224}, True, "crop"),
        ({"size": {"height": 224, "width": 224}}, True, "stretch"),
        ({"size": {"shortest_edge": 224}, "do_center_crop": True}, False, "crop"),
    ],
)
def test_how_a_picture_becomes_square(processor, crops, expected):
    assert fit(processor, crops) == expected


def test_a_picture_that_keeps_its_shape_is_refused():
    with pytest.raises(PlanError, match="crops nothing, and a static graph has one size"):
        fit({"size": {"shortest_edge": 224}, "do_center_crop": False}, crops=True)


def test_siglip2_cuts_the_patches_of_its_encoder(edited_model):
    model = edited_model("tiny-siglip2", patch_size=5)
    with pytest.raises(PlanError, match="cuts patches of 5 pixels, and the encoder reads 8; set"):
        find(model).describe(Recipe())


def test_smolvlm_reads_views_of_the_processors_size(edited_model):
    model = edited_model("tiny-smolvlm", max_image_size={"longest_edge": 96})
    (Path(model) / "processor_config.json").write_text(json.dumps({"image_seq_len": 36}))
    planned = make_plan(Recipe(model=model), find(model))
    host = planned.plan.host
    assert (host.image.height, host.visual_tokens) == (96, 36)
    own = planned.checkpoint.load_model()
    parts = planned.parts(own)
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        x = pixels
        for module in parts.encoder.modules:
            x = module(x)
        wanted = planned.checkpoint.family.reference_features(own, pixels, planned.description)
    assert float((x - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "value", [{"longest_edge": 4}, {"height": 96}, "96", {"longest_edge": 1e3}]
)
def test_a_largest_size_without_a_patch_is_refused(edited_model, value):
    model = edited_model("tiny-smolvlm", max_image_size=value)
    with pytest.raises(PlanError, match="expected longest_edge of at least a patch"):
        find(model).describe(Recipe())


@pytest.mark.parametrize("side", [16, 25, 40, 47])
def test_positions_are_those_of_the_models_own_module(side):
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    from edgevlm.graphs.layers import PatchEmbedding
    from edgevlm.models.shared.idefics import _positions

    config = SimpleNamespace(hidden_size=8, num_channels=3, image_size=2 * side, patch_size=2)
    own = SmolVLMVisionEmbeddings(config).eval()
    for pixels in (2 * side, 2 * (side // 2)):
        view = torch.randn(1, 3, pixels, pixels)
        ours = PatchEmbedding(own.patch_embedding, _positions(own, pixels))(view)
        wanted = own(view, torch.ones(1, pixels // 2, pixels // 2, dtype=torch.bool))
        assert torch.equal(ours, wanted)
    whole = _positions(own, 2 * side)
    assert (whole is own.position_embedding) is (side == 16)  # no copy where none is needed


def test_pixels_of_zero_to_one_where_nothing_is_normalized(edited_model):
    from edgevlm.runtimes.loops import images

    image = find(edited_model("tiny-smolvlm", do_normalize=False)).describe(Recipe()).image
    white = images.views([Image.new("RGB", (128, 128), "white")], image)
    assert np.array_equal(white, np.ones_like(white))


@pytest.mark.parametrize(
    ("numbers", "note"),
    [
        ({"image_mean": 0.5, "image_std": [0.5] * 3, "size": 56}, None),
        ({"image_mean": 0.5, "image_std": 0.5, "max_pixels": 10**6}, None),
        ({"do_normalize": False, "size": {"height": 56, "width": 56}}, None),
        ({"image_std": 1, "size": 56}, "image_mean; taken are mean 0.4, 0.5, 0.6 and deviation 1"),
        ({"image_mean": 0.5, "image_std": 0.5}, "size; taken are views of 70x56"),
        ({"image_mean": 0.5, "image_std": 0.5, "size": None}, "size; taken are views of 70x56"),
        ({}, "image_mean, image_std, size; taken are mean 0.4, 0.5, 0.6 and deviation 1 and views"
             " of 70x56"),
    ],
)  # fmt: skip
def test_numbers_that_a_processor_leaves_out_are_said(numbers, note):
    image = ImageSpec(56, 70, 1, 1, "first", 1, "bicubic", (0.4, 0.5, 0.6), (1.0, 1.0, 1.0))
    whole = f"the image processor's config has no {note}"
    assert defaults(numbers, image) == (() if note is None else (whole,))


@pytest.mark.parametrize(
    ("name", "lacks"), [("tiny-llava", "image_mean, size"), ("tiny-siglip", "image_mean")]
)
def test_a_plan_says_which_numbers_it_took(edited_model, name, lacks):
    folder = Path(edited_model(name))
    path = folder / "preprocessor_config.json"
    numbers = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in numbers.items() if k not in lacks.split(", ")}))
    made = make_plan(Recipe(model=str(folder)), find(str(folder)))
    line = f"the image processor's config has no {lacks}; taken are mean "
    assert made.notes[-1].startswith(line)


def test_a_key_that_is_null_is_one_that_is_not_there():
    files = {"preprocessor_config.json": {"size": None, "patch_size": 14, "image_mean": None}}
    expected = {"patch_size": 14, "image_mean": None}  # transformers refuses a mean that is null
    assert processor_numbers(lambda name: files.get(name, {}), "image") == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size_per_layer_input", -1), ("hidden_size_per_layer_input", 2**40),
        ("pad_token_id", -2), ("pad_token_id", 0.5), ("pad_token_id", 2**40),
    ],
)  # fmt: skip
def test_numbers_that_may_be_none_have_a_range(key, value):
    with pytest.raises(ModelError, match=rf"^config: {key} is .*, expected (0|-1) to \d+$"):
        check_config({key: value}, "config")
    check_config({"hidden_size_per_layer_input": 0, "pad_token_id": -1}, "config")
    check_config({"hidden_size_per_layer_input": None, "pad_token_id": None}, "config")


def test_tokens_of_a_picture_have_a_bound():
    with pytest.raises(ModelError, match=r"max_image_tokens is 1000000, expected 1 to 65536$"):
        check_processor({"max_image_tokens": 10**6}, "the processor's")
