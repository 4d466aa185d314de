"""Encoders that see all frames of a clip at once, against transformers' own."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from edgevlm.errors import PlanError  # noqa: E402
from edgevlm.graphs.signals import encode  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.processor import load_images  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.planning.plan import make_plan  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.loops import images  # noqa: E402

FRAMES = {"tiny-videomae": 8, "tiny-vjepa2": 8}
# Float32 sums in another order; measured 1e-6.
LIMIT = 1e-5
CLASS = "VideoMAEForVideoClassification"


@pytest.fixture
def planned(preset, tmp_path):
    """`planned(name, **changes)`: a plan of a tiny model whose config has these changes."""

    def make(name, frames=None, methods=(), **changes):
        folder = preset(name)
        if changes:
            folder = shutil.copytree(folder, tmp_path / "changed")
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        frames = FRAMES[name] if frames is None else frames
        recipe = Recipe(model=str(folder), frames=frames, methods=methods)
        return make_plan(recipe, find(recipe.model))

    return make


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tiny-videomae", {}),
        ("tiny-videomae", {"architectures": ["VideoMAEForPreTraining"]}),
        ("tiny-vjepa2", {}),
        ("tiny-vjepa2", {"architectures": ["VJEPA2Model"]}),
    ],
)
def test_an_encoder_of_clips_is_the_models_own(planned, name, changes):
    made = planned(name, **changes)
    model = made.checkpoint.load_model()
    encoder, image = made.parts(model).encoder, made.plan.host.image
    torch.manual_seed(0)
    pixels = torch.rand(2, image.channels, image.height, image.width).mul(2).sub(1)
    with torch.no_grad():
        ours = [encode(encoder.modules, clip[None], grid=encoder.grid)[0][0] for clip in pixels]
        theirs = made.checkpoint.family.reference_image(model, pixels, made.description)
    assert theirs.shape == (2, made.plan.host.size)
    assert difference(torch.cat(ours).numpy(), theirs.numpy())[0] <= LIMIT
    assert difference(theirs[0].numpy(), theirs[1].numpy())[0] > 0.05  # or nothing was shown
    with torch.no_grad():  # the order of the frames counts
        turned = pixels[:1].unflatten(1, (-1, 3)).flip(1).flatten(1, 2)
        other = encode(encoder.modules, turned, grid=encoder.grid)[0][0]
    assert difference(other.numpy(), ours[0].numpy())[0] > 0.01


@pytest.mark.parametrize("size", [(40, 30), (31, 57), (32, 32), (17, 90)])
def test_frames_of_odd_sizes_are_those_of_the_processor(planned, size):
    made = planned("tiny-videomae")
    spec, generator = made.plan.host.image, np.random.default_rng(0)
    noise = generator.integers(0, 255, (spec.frames, size[1], size[0], 3), np.uint8)
    frames = [Image.fromarray(frame) for frame in noise]
    theirs = load_images(made.checkpoint)(frames, return_tensors="np")["pixel_values"]
    shrunk = [images.shrink(frame, spec) for frame in frames]  # as of a video
    for ours in (images.views(frames, spec), images.views(shrunk, spec)):
        assert np.abs(ours.reshape(theirs.shape) - theirs).max() < 1e-6


def test_the_plan_says_what_a_call_is(planned):
    plan = planned("tiny-videomae").plan
    assert (plan.host.image.views, plan.host.image.channels) == (1, 24)
    assert plan.host.encoder.tokens == (64,) * 5  # 4 groups of 2 frames, 4 x 4 patches
    assert plan.host.classes == tuple(f"action {index}" for index in range(5))
    assert plan.stage("vision")[-1].functions[0].outputs[0].name == "logits"


@pytest.mark.parametrize(
    ("frames", "changes", "message"),
    [
        (1, {}, "clips of 8 frames, all at once (num_frames of config.json); add --frames 8"),
        (16, {}, "got --frames 16; add --frames 8"),
        (8, {"tubelet_size": 3}, "8 frames in groups of 3"),
        (8, {"id2label": {"1": "a", "2": "b"}, "label2id": {}}, "id2label names 2 classes"),
    ],
)
def test_what_is_no_clip_of_the_model_is_refused(planned, frames, changes, message):
    with pytest.raises(PlanError) as error:
        planned("tiny-videomae", frames=frames, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize("size", [(40, 30), (31, 57), (36, 36), (17, 90)])
def test_a_frame_is_resized_beyond_its_view(planned, size):
    """As V-JEPA 2's processor, of which torchvision's resize rounds up to one level otherwise."""
    spec = planned("tiny-vjepa2").plan.host.image
    assert (spec.shorter, spec.width) == (36, 32)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    frame, short = Image.fromarray(noise), min(size)
    whole = tuple(36 if side == short else int(36 * side / short) for side in size)
    x, y = (int((side - 32) / 2) for side in whole)
    middle = frame.resize(whole, Image.Resampling.BILINEAR).crop((x, y, x + 32, y + 32))
    levels = np.asarray(middle, np.float32).transpose(2, 0, 1) / 255
    mean, std = (np.asarray(three)[:, None, None] for three in (spec.mean, spec.std))
    for given in (frame, images.shrink(frame, spec)):
        ours = images.views([given] * spec.frames, spec).reshape(spec.frames, 3, 32, 32)
        assert np.abs(ours - (levels - mean) / std).max() < 1e-5


def test_tokens_of_a_clip_merge_as_tome_merges_them(planned):
    """The head's mean is that of ToMe's `mae.py`: each token as often as its patches."""
    made = planned("tiny-videomae", methods=("tome@vision:r=10",))
    assert made.plan.host.encoder.tokens == (64, 54, 44, 34, 24)
    model = made.checkpoint.load_model()
    image, own = made.plan.host.image, model.videomae
    torch.manual_seed(0)
    coarse = torch.randn(1, image.channels, 8, 8)
    pixels = torch.nn.functional.interpolate(coarse, (image.height, image.width))
    with torch.no_grad():
        x = own.embeddings(pixels.unflatten(1, (-1, 3)), None)
        size = torch.ones(1, x.shape[1], 1)
        for layer in own.encoder.layer:
            x, size = _tome_layer(layer, x, size, 10)
        pooled = (x * size).sum(1) / size.sum(1)
        expected = model.classifier(model.fc_norm(pooled))
        ours = encode(made.parts(model).encoder.modules, pixels)[0][0]
    assert x.shape[1] == 24
    assert difference(ours.numpy(), expected.numpy())[0] < 1e-5


def _tome_layer(layer, x, size, r):
    """A layer of transformers' with ToMe's merging between attention and MLP, written anew."""
    inside, h = layer.attention.attention, layer.layernorm_before(x)
    heads, count = inside.num_attention_heads, x.shape[1]
    query, key, value = (
        part(h).view(1, count, heads, -1).transpose(1, 2)
        for part in (inside.query, inside.key, inside.value)
    )
    scores = query @ key.transpose(2, 3) * inside.scaling + size.log()[:, None, None, :, 0]
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(1, count, -1)
    x = x + layer.attention.output.dense(mixed)
    metric = key.mean(1)[0]
    metric = metric / metric.norm(dim=-1, keepdim=True)
    best, into = (metric[::2] @ metric[1::2].T).max(-1)
    order = best.argsort(descending=True)
    merged, left = order[:r], order[r:]
    totals = (x * size)[0]
    sums, sizes = totals[1::2].clone(), size[0, 1::2].clone()
    for index in merged.tolist():
        sums[into[index]] += totals[2 * index]
        sizes[into[index]] += size[0, 2 * index]
    x = torch.cat((x[0, 2 * left], sums / sizes))[None]
    size = torch.cat((size[0, 2 * left], sizes))[None]
    h = layer.layernorm_after(x)
    return layer.output(layer.intermediate(h), x), size
