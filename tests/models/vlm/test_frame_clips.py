"""Clips of families that read each frame as a picture: Gemma 4, MiniCPM-V 4.6 and 4.7."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.models.processor import load_images, load_processor  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.loops import images  # noqa: E402

QUESTION = "What happens in this clip, and why?"
SIZES = {
    "tiny-gemma4": (24, 36),
    "tiny-minicpm-v-4-6": (168, 280),
    "tiny-minicpm-v-4-7": (168, 280),
    "tiny-minicpm-v-4-7-4x": (84, 140),
}
NAMES = list(SIZES)
TIMES, DURATION = (0.0, 41.5, 83.0, 124.5), 166.0
# Float32 sums in another order.
LIMIT = 1e-5


def frames_of(photo, image):
    """Frames of a photograph that turns."""
    whole = photo(image.width, image.height)
    return [whole.rotate(20 * index) for index in range(image.frames)]


def own_inputs(made, prompt, pictures, times=TIMES):
    """What the checkpoint's processor makes of a clip.

    Its video processor needs torchvision; patches of a frame are those of a picture, so that its
    image processor cuts them.
    """
    from transformers.video_utils import VideoMetadata

    image, planned = made.plan.host.image, made.planned
    cut = load_images(planned.checkpoint)
    options = planned.checkpoint.family.processor_options(image)
    each = [cut([picture], return_tensors="pt", **options) for picture in pictures]
    count = len(pictures)
    indices = [round(2 * time) for time in times[:count]]
    file = VideoMetadata(total_num_frames=332, fps=2.0, frames_indices=indices)
    clip = {"video_metadata": [file]}
    if "image_position_ids" in each[0]:
        clip |= {
            "pixel_values_videos": torch.cat([one["pixel_values"] for one in each]),
            "video_position_ids": torch.cat([one["image_position_ids"] for one in each]),
            "num_frames_per_video": torch.tensor([count]),
            "num_soft_tokens_per_video": [one["num_soft_tokens_per_image"][0] for one in each[:1]],
        }
    else:
        clip |= {
            "pixel_values_videos": torch.cat([one["pixel_values"] for one in each], dim=-1),
            "target_sizes_videos": torch.cat([one["target_sizes"] for one in each]),
            "num_frames_per_video": torch.tensor([count]),
            "grids_videos": torch.zeros(count, 2, dtype=torch.long),
        }
    own = load_processor(planned.checkpoint, planned.speller.own)
    own.video_processor.clip = clip
    own.video_processor.downsample_mode = getattr(made.model.config, "downsample_mode", "")
    text = own.apply_chat_template(prompt.chat(QUESTION, videos=1), add_generation_prompt=True)
    once = {"add_special_tokens": not planned.speller.written(text)}  # the template may write them
    inputs = own(text=text, videos=[pictures], return_tensors="pt", **once)
    inputs.pop("video_metadata", None)
    return inputs


@pytest.mark.parametrize("frames", [2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_clip_equals_transformers_on_its_own_inputs(tiny, prompt, photo, name, frames):
    """Patches and features by those, ids, positions, and logits behind them."""
    made = tiny(name, size=SIZES[name], frames=frames)
    pictures, core = frames_of(photo, made.plan.host.image), made.model.model
    inputs = own_inputs(made, prompt, pictures)
    views = images.views(pictures, made.plan.host.image)
    features = made.features(views)
    assert difference(features, made.reference_features(views))[0] <= LIMIT
    names = (
        "pixel_values_videos",
        "video_position_ids",
        "target_sizes_videos",
        "num_frames_per_video",
    )
    cut = {key: inputs[key] for key in names if key in inputs}
    theirs = torch.cat(tuple(core.get_video_features(**cut, return_dict=True).pooler_output))
    assert difference(features, theirs[None])[0] <= LIMIT
    ours, token = prompt(made), made.planned.speller.slot
    assert token == made.model.config.video_token_id
    ids = inputs.input_ids[0].tolist()
    assert ours.ids(QUESTION, 1, token, TIMES[:frames], DURATION) == ids
    rows, next_one = ours.rows(QUESTION, [features], TIMES[:frames], DURATION), len(ids)
    positions = torch.arange(len(ids))[:, None]
    if made.plan.host.rope.axes > 1:
        kinds, sizes = inputs.mm_token_type_ids, inputs.target_sizes_videos
        found = core.get_rope_index(inputs.input_ids, kinds, target_sizes_videos=sizes)
        positions, next_one = found[0][:, 0].T, len(ids) + int(found[1])
        core.rope_deltas = None
    assert ours.last.positions.tolist() == positions.tolist()
    assert ours.last.next == next_one
    assert difference(ours.logits(rows), made.model(**inputs).logits)[0] <= 3 * LIMIT


def test_numbers_of_the_video_processor(tiny):
    made = tiny("tiny-gemma4", size=(24, 36), frames=2)
    checkpoint = made.planned.checkpoint
    numbers = checkpoint.processor() | {"video_processor": {"max_soft_tokens": 25}}
    sides = {"patch_size": 2, "resample": 2}
    numbers["video_processor"] |= sides
    describe, config = checkpoint.family.describe, copy.deepcopy(checkpoint.config)
    image = describe(config, numbers, Recipe(frames=3)).image
    assert (image.height, image.width, image.views, image.resample) == (30, 30, 3, "bilinear")
    assert describe(config, numbers, Recipe()).image.height == 48
    with pytest.raises(PlanError, match=r"^size 48x48 makes 64 tokens of .* the video processor"):
        describe(config, numbers, Recipe(frames=3, size=(48, 48)))


@pytest.mark.parametrize("name", NAMES[1:3])
def test_frames_that_the_processor_joins_are_refused(tiny, name):
    checkpoint = tiny(name).planned.checkpoint
    numbers = checkpoint.processor()
    numbers["video_processor"] = checkpoint.processor("video") | {"stack_frames": 3}
    with pytest.raises(PlanError, match=r"^the video processor's stack_frames is 3: it joins fra"):
        checkpoint.family.describe(checkpoint.config, numbers, Recipe(frames=2))


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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_greedy_answer_is_that_of_generate(exported_clip, tiny, prompt, photo, name):
    from edgevlm import api

    done = exported_clip(name, chunk=32)  # Gemma 4 takes a frame of 24 tokens in each call
    assert done.verification.ok
    made = tiny(name, size=SIZES[name], frames=3)
    pictures = frames_of(photo, made.plan.host.image)
    inputs = own_inputs(made, prompt, pictures, (0, 1, 2))  # one a second
    made.model.model.rope_deltas = None
    whole = made.model.generate(**inputs, max_new_tokens=24, do_sample=False)[0].tolist()
    answer = api.load(done.bundle.path).generate(pictures, QUESTION, max_new_tokens=24)
    assert list(answer.token_ids) == whole[inputs.input_ids.shape[1] :]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "executorch", "coreml"])
@pytest.mark.parametrize("method", ["none", "divprune"])
@pytest.mark.parametrize("name", NAMES)
def test_targets_and_methods_agree_with_pytorch(exported_clip, name, method, target):
    half = target == "coreml"
    options = {"target": target, "quantize": "fp16" if half else "none"}
    if method != "none":
        options |= {"methods": (method,), "tokens": 12}
    done = exported_clip(name, **options)
    assert done.verification.ok
    assert half or done.verification.kept_equal == 1.0
