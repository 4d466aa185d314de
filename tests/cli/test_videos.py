"""`edgevlm run -o` and `edgevlm rules`, as a user types them."""

from __future__ import annotations

import json

import numpy as np
import pytest

PROMPT = ("--prompt", "a red circle moves left")


def test_a_video_is_written_and_said(run, video_bundle, tmp_path):
    out = tmp_path / "a.gif"
    done = run("run", str(video_bundle.path), *PROMPT, "-o", str(out), "--leap", "2", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert (document["output"], document["frames"], document["steps_run"]) == (str(out), 5, 2)
    assert out.is_file()
    assert "step 2 of 4" in done.stderr
    again = run("run", str(video_bundle.path), *PROMPT, "-o", str(out))
    assert again.exit_code == 1
    assert "exists; choose another output or give --force" in again.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "it takes both --prompt TEXT and -o FILE.mp4"),
        (("-o", "a.gif", "--guidance", "1", "--negative", "x"), "has no effect without guidance"),
        (("-o", "a.gif", "--image", "a.png"), "--image does not apply"),
        (("-o", "a.gif", "--rule", "none", "--leap", "9"), "rule 'leap': after is 9, of 4 steps"),
        (("-o", "a.gif", "--rule", "mag"), "unknown rule 'mag'"),
        (("-o", "a.gif", "--guidance", "0"), "Invalid value for '--guidance'"),
        (("-o", "a.gif", "--resume"), "there is no 'a.gif.steps.npz' to resume from"),
    ],
)
def test_options_of_no_use(run, video_bundle, tmp_path, monkeypatch, options, why):
    monkeypatch.chdir(tmp_path)
    done = run("run", str(video_bundle.path), *PROMPT, *options)
    assert done.exit_code in (1, 2)
    assert why in " ".join(done.stderr.split())
    assert not [*tmp_path.iterdir()]


def test_other_bundles_write_no_videos(run, exported, tmp_path):
    done = run("run", str(exported.bundle.path), *PROMPT, "-o", str(tmp_path / "a.gif"))
    assert done.exit_code == 1
    assert "--output does not apply" in done.stderr


def test_rules_are_listed(run):
    done = run("rules", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["leap"]["role"] == "leap"
    assert rows["taylor"]["options"] == {"interval": 3, "order": 1, "first": 3, "gap": 0}
    assert "taylor:interval=3, order=1, first=3" in run("rules").stdout


def test_a_video_in_python(video_bundle):
    import edgevlm

    model = edgevlm.load(video_bundle.path, threads=1)
    frames, made = model.generate_video(PROMPT[1], seed=3, rules=["leap:after=1"])
    assert (frames.dtype, frames.shape, made.leapt) == (np.uint8, (5, 32, 48, 3), 3)
    for wrong, why in (
        ({"sed": 1}, "unknown argument of generate_video 'sed'"),
        ({"seed": -1}, "seed must be"), ({"guidance": "x"}, "guidance must be a number"),
        ({"rules": "leap"}, "rules must be"),
    ):  # fmt: skip
        with pytest.raises(edgevlm.EdgeVLMError, match=why):
            model.generate_video(PROMPT[1], **wrong)
    with pytest.raises(edgevlm.EdgeVLMError, match="no answer here"):
        model.generate(None, "x")


def test_a_profile_of_videos(run, video_bundle, tmp_path):
    page = tmp_path / "r.html"
    done = run("profile", str(video_bundle.path), "--runs", "2", "--report", str(page), "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert set(document["stages"]) == {"text", "denoiser", "vae", "evict", "wait", "host"}
    asked = document["video"]["question"]
    assert (asked["steps"], asked["steps_run"], asked["frames"]) == (4, 4, 5)
    assert document["text"] is None
    calls = {(b["name"], b["function"]): b["calls"] for b in document["blocks"]}
    assert calls["denoiser-0", "step"] == 8  # 4 steps, two texts
    assert "Video of “a red circle moves left”" in page.read_text("utf-8")
