"""Clips through the encoder loop: classes of VideoMAE, and CLIP over frames."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
for _module in ("onnx_ir", "onnxscript", "onnxruntime", "av"):
    pytest.importorskip(_module)

import edgevlm  # noqa: E402
from edgevlm.errors import InputError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.own_processors import load_tokenizer  # noqa: E402
from edgevlm.models.processor import load_images  # noqa: E402
from edgevlm.parity.encoder import clip_of  # noqa: E402
from edgevlm.parity.verify import PHOTOS  # noqa: E402
from edgevlm.pipeline import export  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.loops import images  # noqa: E402

FRAMES = {"tiny-videomae": 8, "tiny-clip": 3}


@pytest.fixture(scope="module")
def bundles(preset, tmp_path_factory):
    """`bundles(name)`: a verified bundle of clips."""
    known = {}

    def make(name):
        if name not in known:
            recipe = Recipe(model=str(preset(name)), frames=FRAMES[name])
            done = export(recipe, tmp_path_factory.mktemp("clips") / f"{name}.edgevlm")
            assert done.verification.ok
            assert done.verification.image_rel_error < 1e-5
            assert done.verification.image_sensitivity > 0.05
            known[name] = done.bundle
        return known[name]

    return make


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A file whose frames move over a photo, as many as any bundle here takes, coded losslessly."""
    import av

    path = tmp_path_factory.mktemp("video") / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 90, 60, "bgr0"
        picture = Image.open(PHOTOS[0]).convert("RGB").resize((120, 90))
        for index in range(8):
            frame = picture.crop((index * 3, index, index * 3 + 90, index + 60))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def test_classes_are_those_of_transformers(bundles, video, preset, run):
    bundle = bundles("tiny-videomae")
    checkpoint = find(str(preset("tiny-videomae")))
    frames = images.load_clip(video, 8)[0]
    pixels = load_images(checkpoint)(frames, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = checkpoint.load_model()(pixels).logits[0]
    expected = logits.softmax(-1)
    done = run("run", bundle.path, "--video", video, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["image"], found["video"], found["embedding"]) == (None, str(video), [])
    order = expected.argsort(descending=True).tolist()
    names = [checkpoint.config.id2label[index] for index in order]
    assert [label["label"] for label in found["labels"]] == names
    scores = [label["score"] for label in found["labels"]]
    assert np.abs(np.asarray(scores) - expected[order].numpy()).max() < 1e-5
    assert run("run", bundle.path, "--video", video).stdout.splitlines()[0] == names[0]


def test_frames_may_come_as_pictures(bundles, video):
    model = edgevlm.load(bundles("tiny-videomae").path, threads=1)
    of_file = model.classify(video=video)
    of_pictures = model.embed(images.load_clip(video, 8)[0])
    assert of_pictures.labels == of_file.labels
    with pytest.raises(InputError, match="takes 8 frames per clip, got 2; or give --video FILE"):
        model.embed([PHOTOS[0]] * 2)
    with pytest.raises(InputError, match="scores of its own classes; leave out the labels"):
        model.classify(video=video, labels=["a"])


def test_clip_over_frames_is_the_mean_of_frames_at_length_one(bundles, video, preset):
    checkpoint = find(str(preset("tiny-clip")))
    bundle = bundles("tiny-clip")
    frames = images.load_clip(video, 3)[0]
    pixels = load_images(checkpoint)(frames, return_tensors="pt")["pixel_values"]
    own = checkpoint.load_model()
    texts = ["a dog", "two cats"]
    tokens = {"return_tensors": "pt", "padding": "max_length", "max_length": 16}
    ids = load_tokenizer(checkpoint)(texts, **tokens)
    with torch.no_grad():  # as CLIP4Clip's `_loose_similarity` has it
        seen = own.get_image_features(pixels).pooler_output
        said = own.get_text_features(ids["input_ids"]).pooler_output
        clip = (seen / seen.norm(dim=-1, keepdim=True)).mean(0)
        logits = (
            own.logit_scale.exp()
            * (clip / clip.norm())
            @ (said / said.norm(dim=-1, keepdim=True)).T
        )
    model = edgevlm.load(bundle.path, threads=1)
    found = model.classify(video=video, labels=texts)
    assert np.abs(np.asarray(found.embedding) - clip.numpy()).max() < 1e-5
    scores = [label.score for label in found.labels]
    assert np.abs(np.asarray(scores) - logits.softmax(-1).numpy()).max() < 1e-5
    assert bundle.plan.host.image.views == 3  # a call a frame: memory does not grow with frames


@pytest.mark.parametrize("name", FRAMES)
def test_other_commands(bundles, run, name):
    bundle = bundles(name)
    inspected = json.loads(run("inspect", bundle.path, "--json").stdout)
    assert inspected["frames"] == FRAMES[name]
    assert ("classes" in inspected) is (name == "tiny-videomae")
    assert run("profile", bundle.path, "--runs", 1).exit_code == 0


def test_a_clip_to_verify_with_moves(bundles):
    spec = bundles("tiny-clip").plan.host.image
    first, *_, last = clip_of(PHOTOS[0], spec)
    assert first.size == last.size
    assert np.abs(np.asarray(first, int) - np.asarray(last, int)).mean() > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-videomae", "tiny-vjepa2"])
@pytest.mark.parametrize(
    "options",
    [
        {"block_size_bytes": 100_000},
        {"quantize": "w8a8"},
        {"target": "executorch"},
        {"target": "coreml", "quantize": "fp16"},
    ],
    ids=str,
)
def test_other_targets_and_schemes(preset, tmp_path, name, options):
    recipe = Recipe(model=str(preset(name)), frames=8, **options)
    assert export(recipe, tmp_path / "other.edgevlm").verification.ok
