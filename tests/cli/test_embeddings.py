"""The commands on a bundle with embeddings: what they print, and what they refuse."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("torch")

from edgevlm.parity.verify import PHOTOS
from edgevlm.profiling.document import parse_profile, read_profile

FLOWER, STREAM = PHOTOS


@pytest.fixture
def path(embedder):
    """A tiny CLIP as a bundle."""
    return embedder("tiny-clip").bundle.path


def last_line(done) -> dict:
    """The JSON document of a command that succeeded."""
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_run_prints_the_nearest_label(run, path):
    done = run("run", path, "--image", FLOWER, "--labels", "a dog, a flower")
    nearest, *each = done.stdout.splitlines()
    assert done.exit_code == 0
    scores = {line[2:].rsplit(None, 1)[0].strip(): float(line.split()[-1]) for line in each}
    assert list(scores) == ["a dog", "a flower"]
    assert nearest == max(scores, key=scores.get)
    assert sum(scores.values()) == pytest.approx(1, abs=1e-3)


def test_run_without_labels_prints_the_embedding(run, path):
    done = run("run", path, "--image", FLOWER)
    assert done.stdout.startswith("32 numbers: ")


def test_run_names_each_of_several_images(run, path):
    done = run("run", path, "--image", FLOWER, "--image", "gone.jpg", "--labels", "a,b")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == (f"{FLOWER}:", "gone.jpg:")
    assert "gone.jpg" in done.stderr.splitlines()[-1]


def test_run_as_json_has_a_line_for_each_image(run, path):
    done = run("run", path, "--image", FLOWER, "--image", STREAM, "--labels", "a,b", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert set(first) == {
        "image", "video", "embedding", "labels", "load_ms", "vision_ms", "text_ms",
        "peak_rss_bytes", "engine", "loads",
    }  # fmt: skip
    assert (first["image"], second["image"]) == (str(FLOWER), str(STREAM))
    assert len(first["embedding"]) == 32
    assert first["embedding"] != second["embedding"]
    assert [label["label"] for label in first["labels"]] == ["a", "b"]
    assert second["text_ms"] < first["text_ms"]  # known from the first image


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "?"], "--prompt does not apply: the bundle gives embeddings of images"),
        (["--image", "x", "--seed", "1"], "--seed does not apply: the bundle gives embeddings"),
        (["--image", "x", "--max-new-tokens", "3"], "--max-new-tokens does not apply"),
        (["--video", "x"], "the bundle takes still images; export it with --frames for video"),
        (["--labels", "a"], "no input: the bundle gives embeddings"),
        (["--image", "x"], "no image at 'x'"),
    ],
)
def test_run_says_what_the_bundle_takes(run, path, arguments, message):
    done = run("run", path, *arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_bundle_that_answers_questions_takes_no_labels(run, exported):
    done = run("run", exported.bundle.path, "--prompt", "?", "--labels", "a")
    assert done.exit_code == 1
    assert (
        "--labels does not apply: the bundle answers questions; give --prompt TEXT" in done.stderr
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--image", FLOWER, "--labels", "a,,b"], "--labels has an empty text"),
        (["--image", FLOWER, "--labels", ""], "--labels has an empty text"),
        (
            ["--image", "", "--labels", "a"],
            "--image is empty, or this folder; give the name of a file",
        ),
    ],
)
def test_an_empty_input_is_wrong_usage(run, path, asked, message):
    done = run("run", path, *asked)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_labels_of_a_file_may_have_commas(run, path, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("\ufeffa dog, asleep\n\n  a flower  \n", "utf-8")
    done = run("run", path, "--image", FLOWER, "--labels", f"@{file}", "--json")
    assert [x["label"] for x in last_line(done)["labels"]] == ["a dog, asleep", "a flower"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"\n \n", "has no label; it has a label a line"),
        (b"\xff", "is not valid UTF-8"),
        (b"a" * 10_000_001, "is too large"),
    ],
)
def test_a_file_of_labels_that_is_none(run, path, tmp_path, content, message):
    file = tmp_path / "labels.txt"
    if content is not None:
        file.write_bytes(content)
    done = run("run", path, "--image", FLOWER, "--labels", f"@{file}")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("edgevlm: --labels: ")
    assert message in done.stderr


def test_labels_without_a_bundle_export_nothing(run, monkeypatch):
    monkeypatch.setattr("edgevlm.cli.run.default_bundle", lambda: pytest.fail("exported"))
    done = run("run", "--image", FLOWER, "--labels", "a,b")
    assert done.exit_code == 1
    assert "--labels does not apply: the bundle answers questions" in done.stderr


def test_the_default_bundle_is_of_the_kind_that_is_said():
    from edgevlm.cli.shared.default_bundle import KIND, RECIPE
    from edgevlm.models.find import find

    assert find(RECIPE.model).family.KIND == KIND


def test_export_plan_and_inspect(run, preset, path, tmp_path):
    model = str(preset("tiny-siglip"))
    document = last_line(run("export", model, "-o", tmp_path / "a.edgevlm", "--json"))
    assert document["embedding_dimensions"] == 64
    assert "visual_tokens" not in document
    plan = last_line(run("plan", model, "--json"))
    assert plan["stages"] == ["vision", "text"]
    assert (plan["embedding_dimensions"], plan["text_tokens"]) == (64, 16)
    assert "similarity: 10 x cosine -1, sigmoid" in run("plan", model).stdout
    assert last_line(run("inspect", path, "--json"))["kind"] == "encoder"
    text = run("inspect", path).stdout
    assert "32 embedding dimensions" in text
    assert "image: 56x56 pixels" in text
    assert "similarity: 10 x cosine +0, softmax" in text
    host = last_line(run("inspect", path, "--json"))["host"]
    assert host["text"]["end_id"] == 1023
    assert len(host["image"]["mean"]) == 3


def test_plan_for_a_device(run, preset):
    model = str(preset("tiny-siglip"))
    document = last_line(run("plan", model, "--for", "iphone-15-pro", "--json"))
    assert document["for"]["asked"]["fits"]
    assert document["for"]["asked"]["token_floor_ms"] is None
    assert document["for"]["not_measured"]["token_floor_ms"] == "an embedding has no tokens"
    text = run("plan", model, "--for", "iphone-15-pro").stdout
    assert "KV cache" not in text
    assert "fits" in text


def test_plan_of_a_budget(run, path):
    document = last_line(run("plan", path, "--memory", "2GB", "--json"))
    assert document["predicted"]["pass_ms"].keys() == {"vision", "text"}


def test_verify(run, path):
    document = last_line(run("verify", path, "--json"))
    assert document["ok"]
    assert document["token_ids_equal"] == 1.0
    assert document["image_rel_error"] < 1e-4
    assert document["preprocessing_error"] < 1e-6


def test_verify_refuses_another_tokenizer(run, embedder, preset, tmp_path):
    """`tokenizer.json` says one thing, the checkpoint's own tokenizer another."""
    folder = shutil.copytree(preset("tiny-siglip"), tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": True}))
    path = embedder("tiny-siglip").bundle.path
    done = run("verify", path, "--model", folder)
    assert done.exit_code == 1
    assert "token_ids_equal is" in done.stderr


@pytest.mark.parametrize(
    ("asked", "modality", "source"),
    [([], "image", "scene.png"), (["--prompt", "a dog"], "text", "a dog")],
)
def test_profile(run, path, tmp_path, asked, modality, source):
    file, page = tmp_path / "p.json", tmp_path / "p.html"
    done = run("profile", path, "--runs", 2, *asked, "-o", file, "--report", page, "--json")
    profile = read_profile(file)
    assert parse_profile(done.stdout.splitlines()[-1]).embedding == profile.embedding
    assert (profile.kind, profile.text, profile.ttft_ms) == ("encoder", None, None)
    question = profile.embedding.question
    assert (question.modality, question.source) == (modality, source)
    assert profile.embedding.dimensions == 32
    ran = {block.stage for block in profile.blocks if block.calls}
    assert ran == {"vision" if modality == "image" else "text"}
    assert modality in page.read_text()


def test_profile_says_which_encoder_it_measures(run, path):
    done = run("profile", path, "--runs", 1)
    assert "one encoder is measured: that of texts with --prompt" in done.stdout


def test_profile_of_tokens_is_refused(run, path):
    done = run("profile", path, "--tokens-generated", 3)
    assert done.exit_code == 1
    assert "an embedding has no tokens; leave out --tokens-generated" in done.stderr


def test_profile_of_an_image_and_a_text_is_refused(run, path):
    done = run("profile", path, "--image", FLOWER, "--prompt", "a")
    assert done.exit_code == 1
    assert "give --image or --prompt, not both" in done.stderr


@pytest.mark.parametrize("bundle", [True, False])
def test_evaluate_is_refused(run, path, preset, bundle):
    done = run("evaluate", path if bundle else preset("tiny-clip"), "--limit", 1)
    assert done.exit_code == 1
    assert "answers no questions; give a vision-language model" in done.stderr


def test_inspect_shows_the_largest_numbers_of_a_core_ml_encoder(run, preset, tmp_path):
    pytest.importorskip("coremltools")
    bundle = tmp_path / "a.edgevlm"
    model = str(preset("tiny-siglip"))
    done = run("export", model, "--target", "coreml", "--quantize", "fp16", "-o", bundle)
    assert done.exit_code == 0, done.stderr
    document = last_line(run("inspect", bundle, "--image", FLOWER, "--json"))
    largest = document["largest_float16"]["vision-0.encode"]
    assert 0 < max(largest.values()) < 65_504
