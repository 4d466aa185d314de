"""Whole videos: diffusers' own at the same seed, rules, interrupted runs, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.recipe import MethodChoice
from edgevlm.runtimes.loading import load_loop
from edgevlm.runtimes.loops.contract import VideoRequest
from edgevlm.runtimes.loops.video.files import check_output, write_video
from edgevlm.runtimes.loops.video.noise import noise
from edgevlm.runtimes.loops.video.resume import state_path

ASKED = VideoRequest(prompt="a red circle moves left", seed=7)


@pytest.fixture(scope="module")
def loop(video_bundle):
    return load_loop(video_bundle.path, threads=1)


def with_rules(*texts):
    return replace(ASKED, rules=[MethodChoice.parse(text) for text in texts])


def psnr(a, b) -> float:
    error = np.square(a.astype(float) - b.astype(float)).mean()
    return float("inf") if not error else 10 * np.log10(255**2 / error)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_video_is_diffusers_own_at_the_same_seed(loop, tiny_pipeline, own_pipeline, guidance):
    torch = pytest.importorskip("torch")
    frames, made = loop.video(replace(ASKED, guidance=guidance))
    own = own_pipeline(tiny_pipeline)(
        ASKED.prompt, height=32, width=48, num_frames=5, num_inference_steps=4,
        guidance_scale=guidance, generator=torch.Generator().manual_seed(7), output_type="np",
    ).frames[0]  # fmt: skip
    assert psnr(frames, (own * 255).round()) >= 50
    assert (made.frames, made.steps_run, frames.shape) == (5, 4, (5, 32, 48, 3))
    assert frames.std() > 1  # something is to be seen


def test_noise_is_pytorchs(monkeypatch):
    torch = pytest.importorskip("torch")
    for shape, seed in (((1, 4, 2, 3, 5), 0), ((17,), 2**31 + 7), ((4, 4), 42)):
        own = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
        assert np.abs(noise(shape, seed) - own).max() < 1e-6


@pytest.mark.parametrize(
    ("rules", "ran"),
    [
        (("leap:after=2",), (2, 0, 0, 2)),
        (("reuse:interval=2",), (3, 0, 1, 0)),
        (("taylor:first=2,interval=3",), (2, 0, 2, 0)),
        (("first-block:threshold=10",), (1, 3, 0, 0)),
        (("first-block:threshold=0",), (4, 0, 0, 0)),
        (("guidance:stop=1", "leap:after=3"), (3, 0, 0, 1)),
    ],
)
def test_rules_spare_steps(loop, rules, ran):
    frames, made = loop.video(with_rules(*rules))
    assert (made.steps_run, made.steps_skipped, made.steps_forecast, made.leapt) == ran
    whole, _ = loop.video(ASKED)
    assert np.array_equal(frames, whole) == (ran == (4, 0, 0, 0))


@pytest.mark.parametrize(
    "rules", [(), ("taylor:first=2,interval=2",), ("first-block:threshold=0.3",), ("teacache",),
              ("leap:least=1,patience=2",)], ids=str,
)  # fmt: skip
def test_an_interrupted_video_goes_on_to_the_identical_one(loop, tmp_path, rules):
    asked = replace(with_rules(*rules), output=tmp_path / "a.gif")
    _, whole = loop.generate(asked)
    expected, loop.stopped = (tmp_path / "a.gif").read_bytes(), 0

    def stop(line):
        loop.stopped += line.startswith("step 3")
        if loop.stopped:
            raise KeyboardInterrupt

    cut = replace(asked, output=tmp_path / "b.gif", on_step=stop)
    with pytest.raises(KeyboardInterrupt):
        loop.generate(cut)
    assert state_path(cut.output).is_file()
    assert not cut.output.exists()
    _, made = loop.generate(replace(cut, on_step=lambda _: None, resume=True))
    assert cut.output.read_bytes() == expected
    assert not state_path(cut.output).exists()
    assert made.steps_run < whole.steps_run or made.steps_skipped < whole.steps_skipped or rules


def test_a_run_that_is_stopped_at_its_frames_goes_on_with_them(loop, tmp_path):
    said = []

    def stop(line):
        said.append(line)
        if line == "frames":
            raise KeyboardInterrupt

    asked = replace(ASKED, output=tmp_path / "a.gif")
    with pytest.raises(KeyboardInterrupt):
        loop.generate(replace(asked, on_step=stop))
    frames, made = loop.generate(replace(asked, on_step=said.append, resume=True))
    assert said == [*(f"step {i} of 4" for i in (1, 2, 3, 4)), "frames", "frames"]
    assert made.steps_run == 0
    assert np.array_equal(frames, loop.video(ASKED)[0])


def test_what_cannot_be_resumed(loop, tmp_path):
    with pytest.raises(InputError, match="give output too"):
        loop.video(replace(ASKED, resume=True))
    asked = replace(ASKED, output=tmp_path / "a.gif", resume=True)
    with pytest.raises(InputError, match=r"there is no .* to resume from"):
        loop.generate(asked)

    def stop(line):
        if line.startswith("step 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.generate(replace(asked, resume=False, on_step=stop))
    with pytest.raises(InputError, match="has steps of an interrupted video; add --resume"):
        loop.generate(replace(asked, resume=False))
    for other in (replace(asked, seed=8), replace(asked, prompt="other"),
                  replace(asked, guidance=2.0)):  # fmt: skip
        with pytest.raises(InputError, match="belongs to another video"):
            loop.generate(other)
    state = state_path(asked.output)
    whole = state.read_bytes()
    arrays = dict(np.load(state))
    (name, *_) = [name for name in arrays if name.startswith("sampler.clean")]
    np.savez(state, **(arrays | {name: np.zeros((3, 5), np.float32)}))
    with pytest.raises(InputError, match="the saved steps are damaged"):
        loop.generate(asked)
    for name, array in (("over", np.zeros((3, 3), np.float32)), ("step", np.array(-1)),
                        ("step", np.array(1j)), ("sampler.order", np.float32(1))):  # fmt: skip
        np.savez(state, **(arrays | {name: array}))
        with pytest.raises(InputError, match="damaged"):
            loop.generate(asked)
    np.savez_compressed(state, **(arrays | {"zeros": np.zeros(2**22, np.float32)}))
    with pytest.raises(InputError, match="is compressed or encrypted"):
        loop.generate(asked)
    for data in (b"", b"x" * 100, whole[: len(whole) // 2], whole[:-30]):
        state.write_bytes(data)
        with pytest.raises(InputError, match="is damaged"):
            loop.generate(asked)


def test_a_budget_gives_the_same_video(video_bundle, loop):
    from edgevlm.runtimes.residency.memory import resident_bytes

    expected, _ = loop.video(ASKED)
    budget = resident_bytes() + 100 * 10**6
    bounded = load_loop(video_bundle.path, threads=1, memory=budget)
    frames, made = bounded.video(ASKED)
    bounded.blocks.close()
    assert psnr(frames, expected) > 50  # other packings of matrices round otherwise
    assert made.loads > 0


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif", ".webp", ""])
def test_files_hold_the_frames(tmp_path, ending):
    if ending in (".mp4", ".webm"):
        pytest.importorskip("av")
    rows = np.linspace(0, 255, 32)[:, None] + np.linspace(0, 60, 48)
    frames = np.stack([np.clip(rows / 1.3 + 20 * i, 0, 255) for i in range(4)])
    frames = np.repeat(frames[..., None], 3, axis=-1).astype(np.uint8)
    path = tmp_path / f"v{ending}"
    write_video(path, frames, 8)
    assert psnr(read(path), frames) > 35
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    write_video(path, frames[:2], 8)  # replaces
    assert len(read(path)) == 2


def read(path: Path):
    if path.is_dir():
        return np.stack([np.asarray(Image.open(each)) for each in sorted(path.iterdir())])
    if path.suffix in (".gif", ".webp"):
        picture, found = Image.open(path), []
        for index in range(picture.n_frames):
            picture.seek(index)
            found.append(np.asarray(picture.convert("RGB")))
        return np.stack(found)
    import av

    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_places_where_no_video_is_written(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"old")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "frame-of-mine.png").write_text("mine")
    for name, why in (
        ("a.avi", "a video ends in .mp4"), ("none/a.gif", "is no folder"), ("a.gif", "exists"),
        ("frames", "exists"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            check_output(tmp_path / name, force=False)
    check_output(tmp_path / "a.gif", force=True)
    with pytest.raises(InputError, match="holds more than frames"):
        check_output(tmp_path / "frames", force=True)


def test_prompts_of_no_use(loop):
    with pytest.raises(InputError, match="prompt"):
        loop.video(replace(ASKED, prompt=3))
    frames, _ = loop.video(replace(ASKED, prompt=""))
    long, _ = loop.video(replace(ASKED, prompt="red " * 25_000))
    assert frames.shape == long.shape
