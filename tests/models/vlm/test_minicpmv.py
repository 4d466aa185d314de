"""MiniCPM-V: slices of a picture, and their places on the canvas of 4.7."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.parity.own.preprocessing import preprocessing_error  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402

PRESETS = ["tiny-minicpm-v-4-6", "tiny-minicpm-v-4-7"]
MODES = [*PRESETS, "tiny-minicpm-v-4-7-4x"]  # of the last a view has half the pixels each way
QUESTION = "What is in this picture?"


def own_positions(made, inputs):
    """Positions [S, axes] by the model."""
    ids, kinds = inputs.input_ids, inputs.mm_token_type_ids
    sizes = {"target_sizes": inputs.target_sizes}
    return made.model.model.get_rope_index(ids, kinds, **sizes)[0][:, 0].T.tolist()


def pixels_of(name, *sides):
    """Sides in pixels, for views of as many tokens."""
    return [side // 2 if name.endswith("4x") else side for side in sides]


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize(
    ("slices", "width", "height"), [(2, 448, 448), (2, 500, 380), (3, 700, 660)]
)
def test_slices_are_those_that_the_processor_chooses(
    tiny, processor, prompt, photo, name, slices, width, height
):
    """Of pictures of several sizes it cuts these grids without being told."""
    own = processor(tiny(name).planned.checkpoint.folder)
    picture = photo(*pixels_of(name, width, height))
    inputs = prompt.inputs(own, QUESTION, [picture])
    assert len(inputs.target_sizes) == 1 + slices**2
    size = tuple((inputs.target_sizes[0] * 14).tolist())
    made = tiny(name, tiles=(slices, slices), size=size)
    ours, token = prompt(made), made.model.config.image_token_id
    assert ours.ids(QUESTION, 1, token) == inputs.input_ids[0].tolist()
    if made.plan.host.rope.axes > 1:
        ours.rows(QUESTION, [made.features(made.views(picture))])
        assert ours.last.positions.tolist() == own_positions(made, inputs)


def test_a_line_break_behind_a_picture_stands_at_its_beginning(tiny, processor, prompt, photo):
    made = tiny(PRESETS[1], tiles=(2, 2))
    own, picture = processor(made.planned.checkpoint.folder), photo(448, 448)
    for question in ("\nWhat?", "\n\nWhat?", " \nWhat?"):
        inputs, ours = prompt.inputs(own, question, [picture] * 2), prompt(made)
        ours.rows(question, [made.features(made.views(picture))] * 2)
        assert list(ours.last.ids[-9:]) == inputs.input_ids[0, -9:].tolist()
        assert ours.last.positions.tolist() == own_positions(made, inputs)


@pytest.mark.parametrize("name", MODES)
def test_slices_of_another_shape_than_a_square(tiny, photo, name):
    size = tuple(pixels_of(name, 168, 280))
    made = tiny(name, tiles=(2, 2), size=size)
    pixels = torch.rand(5, 3, *size).mul(2).sub(1).numpy()
    ours, theirs = made.features(pixels), made.reference_features(pixels)
    assert tuple(ours.shape) == (1, 75, 64)
    assert difference(ours, theirs)[0] <= 1e-5
    checkpoint, image = made.planned.checkpoint, made.plan.host.image
    picture = photo(*pixels_of(name, 560, 336))
    assert preprocessing_error(checkpoint, image, picture, middle=False) <= 1e-6


REFUSED = {
    "rows": ({"tiles": (1, 2)}, r"^tiles 1x2: of a picture that the image processor cuts so, the"),
    "many": ({"tiles": (4, 4)}, r"^tiles 4x4 are more slices than .* makes, 9; give 3x3$"),
    "shape": ({"tiles": (2, 2), "size": (112, 448)}, r"^tiles 2x2: .* --size is cut 1x4 by the"),
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(preset, name, options, message):
    path = str(preset(name))
    with pytest.raises(PlanError, match=message):
        make_plan(Recipe(model=path, **options), find(path))


def test_a_mode_of_which_the_processor_says_another_is_refused(tiny):
    checkpoint = tiny(PRESETS[0]).planned.checkpoint
    numbers = checkpoint.processor() | {"downsample_mode": "4x"}
    with pytest.raises(PlanError, match=r"^downsample_mode is 16x in config.json and 4x in the"):
        checkpoint.family.describe(checkpoint.config, numbers, Recipe())


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "executorch", "coreml"])
@pytest.mark.parametrize("methods", [(), ("divprune",), ("tome@vision:r=8",)])
def test_mode_4x_agrees_with_pytorch(preset, tmp_path, target, methods):
    """Without its inner fold the encoder takes methods at site vision too."""
    from edgevlm.pipeline import export

    half, tokens = target == "coreml", {"tokens": 6} if methods == ("divprune",) else {}
    scheme = {"target": target, "quantize": "fp16" if half else "none"}
    recipe = Recipe(model=str(preset(MODES[-1])), methods=methods, **scheme, **tokens)
    done = export(recipe, tmp_path / "tiny.edgevlm")
    assert done.verification.ok
