"""Clips of the Qwen-VL line: groups of frames, their times and positions against transformers'."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.processor import load_processor  # noqa: E402
from edgevlm.models.shared.qwen_pictures import as_patches  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.loops import images  # noqa: E402

QUESTION = "What happens in this clip, and why?"
# Sizes with several windows where there are any.
SIZES = {
    "tiny-qwen2-5-vl": (112, 168),
    "tiny-qwen3-vl": (64, 96),
    "tiny-qwen3-5": (64, 96),
    "tiny-glm-ocr": (56, 84),
}
NAMES = list(SIZES)
# Float32 sums in another order; measured 1e-6.
LIMIT = 1e-5


def frames_of(photo, image):
    """Frames of a photograph that turns."""
    whole = photo(image.width, image.height)
    return [whole.rotate(20 * index) for index in range(image.frames)]


def taken(frames, step, fps=10.0):
    """What transformers knows of a file of which each `step`-th frame is taken."""
    from transformers.video_utils import VideoMetadata

    indices = [step * index for index in range(frames)]
    return VideoMetadata(total_num_frames=step * frames, fps=fps, frames_indices=indices)


def own_inputs(made, prompt, pictures, file):
    """What the checkpoint's processor makes of frames at the size, and its video processor of them.

    That of Qwen3-VL is the one that can be imported without torchvision; `patchify` of all three is
    the same.
    """
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    vision = made.model.config.vision_config
    frames = images.views(pictures, replace(made.plan.host.image, depth=1))
    sides = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    cut = torch.from_numpy(frames)[None]
    patches, *grid = Qwen3VLVideoProcessor.patchify(None, cut, *sides)
    own = load_processor(made.planned.checkpoint, made.planned.speller.own)
    own.video_processor.clip = {
        "pixel_values_videos": patches[0],
        "video_grid_thw": torch.tensor([grid]),
        "video_metadata": [file],
    }
    text = own.apply_chat_template(prompt.chat(QUESTION, videos=1), add_generation_prompt=True)
    return own(text=text, videos=[pictures], return_tensors="pt")


@pytest.mark.parametrize("frames", [2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_clip_equals_transformers_on_its_own_inputs(tiny, prompt, photo, name, frames):
    """Patches, features, ids, positions, and logits behind them; of three frames the last twice."""
    made, file = tiny(name, size=SIZES[name], frames=frames), taken(frames, 9)
    pictures, vision = frames_of(photo, made.plan.host.image), made.model.config.vision_config
    inputs = own_inputs(made, prompt, pictures, file)
    views = images.views(pictures, made.plan.host.image)
    patches, grid = as_patches(torch.from_numpy(views), vision)
    assert grid.tolist() == inputs.video_grid_thw.tolist()
    np.testing.assert_array_equal(patches.numpy(), inputs.pixel_values_videos.numpy())
    features = made.features(views)
    assert difference(features, made.reference_features(views))[0] <= LIMIT
    own, levels = made.planned.own_levels(made.model, torch.from_numpy(views)), made.levels(views)
    for level, expected in zip(levels if own else (), own.values(), strict=True):
        assert difference(level[None], expected)[0] <= LIMIT
    ours, token = prompt(made), made.planned.speller.slot
    times, duration = file.timestamps, file.total_num_frames / file.fps
    ids = inputs.input_ids[0].tolist()
    assert ours.ids(QUESTION, 1, token, times, duration) == ids
    rows = ours.rows(QUESTION, [features], times, duration, [levels])
    positions, deltas = made.model.model.get_rope_index(
        inputs.input_ids,
        inputs.mm_token_type_ids,
        video_grid_thw=inputs.video_grid_thw,
        second_per_grid_ts=inputs.get("second_per_grid_ts"),
    )
    assert ours.last.positions.T.tolist() == positions[:, 0].tolist()
    assert ours.last.next == len(ids) + int(deltas)
    assert difference(ours.logits(rows), made.model(**inputs).logits)[0] <= 3 * LIMIT


@pytest.mark.parametrize("step", [1, 3, 7, 10, 25, 299])
def test_groups_are_as_far_apart_as_the_clip_is_long(tiny, prompt, step):
    """Of Qwen2.5-VL, at whole and at broken numbers of positions a group."""
    made, file = tiny("tiny-qwen2-5-vl", size=(112, 112), frames=9), taken(9, step, 30.0)
    ours, vision = prompt(made), made.model.config.vision_config
    features = torch.zeros(1, made.plan.host.visual_tokens, 64)
    ours.rows(QUESTION, [features], file.timestamps, file.total_num_frames / file.fps)
    tokens, ids = len(ours.last.visual), torch.tensor([ours.last.ids])
    positions, deltas = made.model.model.get_rope_index(
        ids,
        (ids == -1).int() * 2,
        video_grid_thw=torch.tensor([[5, 8, 8]]),
        second_per_grid_ts=torch.tensor([vision.temporal_patch_size / file.sampled_fps]),
    )
    assert tokens == 5 * 16
    assert ours.last.positions.T.tolist() == positions[:, 0].tolist()
    assert ours.last.next == ids.shape[1] + int(deltas)


def test_a_generated_token_goes_on_behind_the_last_group(tiny, prompt):
    made = tiny("tiny-qwen2-5-vl", size=(112, 112), frames=4)
    whole, few = prompt(made), prompt(tiny("tiny-qwen2-5-vl", size=(112, 112), frames=4, tokens=3))
    features, times = torch.zeros(1, 32, 64), [0.0, 30.0, 60.0, 90.0]
    whole.rows(QUESTION, [features], times, 120.0)
    few.rows(QUESTION, [features[:, :3]], times, 120.0)  # all of the first group
    start = whole.last.visual[0]
    assert whole.last.positions[start + 16].tolist() == [start + 120, start, start]
    assert whole.last.next == few.last.next == start + 121
    # The text behind the clip begins below that.
    assert whole.last.positions[start + 32].tolist() == [start + 4] * 3


@pytest.mark.parametrize("name", NAMES)
def test_views_are_those_of_the_video_processor(tiny, photo, name):
    pytest.importorskip("torchvision", reason="transformers' video processors need it")
    from transformers import AutoVideoProcessor

    made = tiny(name, size=SIZES[name], frames=3)
    pictures, vision = frames_of(photo, made.plan.host.image), made.model.config.vision_config
    own = AutoVideoProcessor.from_pretrained(made.planned.checkpoint.folder)
    pixels = [np.stack([np.asarray(picture) for picture in pictures])]
    theirs = own(pixels, do_sample_frames=False, return_tensors="pt")
    views = torch.from_numpy(images.views(pictures, made.plan.host.image))
    patches, grid = as_patches(views, vision)
    assert grid.tolist() == theirs.video_grid_thw.tolist()
    np.testing.assert_allclose(patches, theirs.pixel_values_videos, atol=1e-6)


def described(made, recipe, video=(), **vision):
    """The description of a checkpoint with other numbers of its config and video processor."""
    checkpoint = made.planned.checkpoint
    config, numbers = copy.deepcopy(checkpoint.config), checkpoint.processor()
    for key, value in vision.items():
        setattr(config.vision_config, key, value)
    numbers |= {"video_processor": checkpoint.processor("video") | dict(video)}
    return checkpoint.family.describe(config, numbers, recipe)


def test_a_clip_has_the_numbers_of_the_video_processor(tiny):
    made = tiny("tiny-qwen2-5-vl", size=(112, 112), frames=4)
    video = {"image_mean": [0.25] * 3, "resample": 2}
    image = described(made, Recipe(size=(112, 112), frames=4), video).image
    assert (image.mean, image.resample, image.depth, image.views) == ((0.25,) * 3, "bilinear", 2, 2)
    image = described(made, Recipe(size=(112, 112)), video).image
    assert (image.resample, image.depth, image.views) == ("bicubic", 1, 1)


# Of 112x112 pixels, 12,544: Qwen2.5-VL counts those of a frame, the others those of all frames, of
# which five are four.
@pytest.mark.parametrize(
    ("name", "frames", "most", "pixels"),
    [
        ("tiny-qwen2-5-vl", 8, 12_543, 12_544),
        ("tiny-qwen3-vl", 8, 32_767, 32_768),
        ("tiny-qwen3-vl", 5, 16_383, 16_384),
        ("tiny-glm-ocr", 8, 100_351, 100_352),
    ],
)
def test_sizes_that_the_video_processor_would_change_are_refused(tiny, name, frames, most, pixels):
    size = (64, 64) if name == "tiny-qwen3-vl" else (112, 112)
    made, recipe = tiny(name, size=SIZES[name], frames=2), Recipe(size=size, frames=frames)
    bounds = {"min_pixels": None, "max_pixels": None}
    described(made, recipe, bounds | {"size": {"shortest_edge": 1, "longest_edge": pixels}})
    with pytest.raises(PlanError) as caught:
        described(made, recipe, bounds | {"size": {"shortest_edge": 1, "longest_edge": most}})
    assert str(caught.value) == (
        f"a size of {pixels} pixels is outside of what the video processor keeps, 1 to {most}"
        " pixels; give another --size"
    )


def test_what_a_clip_cannot_be_is_refused(tiny):
    made, recipe = tiny("tiny-qwen3-vl", size=(64, 96), frames=2), Recipe(size=(64, 64), frames=3)
    with pytest.raises(PlanError, match=r"^the video processor's merge_size is 4, the encoder's 2"):
        described(made, recipe, {"merge_size": 4})
    with pytest.raises(PlanError, match=r"^a clip of 3 frames is less than the 4 that the encoder"):
        described(made, recipe, temporal_patch_size=4)
    made = tiny("tiny-qwen2-5-vl", size=(112, 112), frames=4)
    for rate in (0, -2, 2000):
        with pytest.raises(PlanError, match=r"^tokens_per_second of vision_config is .* above 0"):
            described(made, Recipe(size=(112, 112), frames=4), tokens_per_second=rate)


def test_numbers_of_a_video_processor_in_a_file_of_its_own(preset, tmp_path):
    path = shutil.copytree(preset("tiny-qwen3-vl"), tmp_path / "model")
    file = path / "video_preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.25] * 3, "size": {"longest_edge": 4096}}))
    recipe = Recipe(model=str(path), size=(64, 64), frames=4)
    with pytest.raises(PlanError, match="a size of 16384 pixels is outside of what the video proc"):
        make_plan(recipe, find(str(path)))
    file.write_text(json.dumps({"image_mean": [0.25] * 3}))
    assert make_plan(recipe, find(str(path))).plan.host.image.mean == (0.25,) * 3
    assert make_plan(replace(recipe, frames=1), find(str(path))).plan.host.image.mean == (0.5,) * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 3, "methods": ("tome@vision:r=8",)}, "tome at site vision merges tokens"),
        (
            {"frames": 3, "tokens": 4, "methods": ("visionzip",)},
            "visionzip needs the signal 'keys', which this encoder cannot give",
        ),
        (
            {"frames": 3, "tokens": 4, "methods": ("divprune:positions=contiguous",)},
            "divprune with positions=contiguous numbers tokens anew",
        ),
    ],
)
def test_methods_that_cannot_be_are_refused_of_clips_too(preset, options, message):
    path = str(preset("tiny-qwen2-5-vl"))
    with pytest.raises(PlanError, match=message):
        make_plan(Recipe(model=path, size=(112, 112), **options), find(path))


@pytest.fixture(scope="module")
def exported_clip(preset, tmp_path_factory):
    """A bundle of three frames, verified; `options` are those of a recipe."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from edgevlm.pipeline import export

    def make(name, **options):
        recipe = Recipe(model=str(preset(name)), size=SIZES[name], frames=3, **options)
        return export(recipe, tmp_path_factory.mktemp("clip") / "tiny.edgevlm")

    return make


# The graphs are those of the families; positions of Qwen2.5-VL are the furthest from a picture's.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:]]


@pytest.mark.parametrize("name", [NAMES[0], *SLOW])
def test_a_greedy_answer_is_that_of_generate(exported_clip, tiny, prompt, photo, name):
    from edgevlm import api

    done = exported_clip(name, chunk=16, context=288)
    assert done.verification.ok
    made = tiny(name, size=SIZES[name], frames=3)
    pictures = frames_of(photo, made.plan.host.image)
    inputs = own_inputs(made, prompt, pictures, taken(3, 1, 1.0))  # one a second
    made.model.model.rope_deltas = None
    whole = made.model.generate(**inputs, max_new_tokens=24, do_sample=False)[0].tolist()
    answer = api.load(done.bundle.path).generate(pictures, QUESTION, max_new_tokens=24)
    assert list(answer.token_ids) == whole[inputs.input_ids.shape[1] :]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "executorch", "coreml"])
@pytest.mark.parametrize("method", ["divprune", "vispruner", "dart@decoder"])
@pytest.mark.parametrize("name", NAMES)
def test_targets_and_methods_agree_with_pytorch(exported_clip, name, method, target):
    half = target == "coreml"
    options = {"target": target, "methods": (method,), "quantize": "fp16" if half else "none"}
    if "decoder" not in method:
        options["tokens"] = 6
    elif name in ("tiny-qwen3-vl", "tiny-qwen3-5"):
        with pytest.raises(PlanError, match=r"takes tokens out between layers|is recurrent"):
            exported_clip(name, **options)
        return
    done = exported_clip(name, **options)
    assert done.verification.ok
    assert half or done.verification.kept_equal == 1.0
