"""`edgevlm evaluate`: the result, its document, and wrong usage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

PHOTO = Path(__file__).resolve().parents[2] / "edgevlm" / "photos" / "flower.jpg"
KEYS = {
    "accuracy", "low", "high", "n", "tasks", "groups", "visual_tokens", "asked", "left_out",
    "bundle_bytes", "ttft_ms", "engine", "dataset", "model_or_bundle",
}  # fmt: skip


@pytest.fixture
def questions(tmp_path):
    """Three scenes: a picture, a chat about it, and a clip."""
    shutil.copy(PHOTO, tmp_path / "flower.jpg")
    one = {"prompt": "What is this?", "answer": "no model says this"}
    lines = [
        {"image": "flower.jpg", "task": "read [red]\x1b[2J", **one},
        {"image": "flower.jpg", "chat": True, "questions": [one, one]},
        {"frames": ["flower.jpg", "flower.jpg"], **one},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_bundle(run, exported, questions):
    done = run("evaluate", exported.bundle.path, "--dataset", questions, "--threads", "1", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert set(found) >= KEYS
    assert (found["accuracy"], found["n"], found["visual_tokens"]) == (0.0, 3, 16)
    assert found["tasks"]["multi_turn"] == {"accuracy": 0.0, "low": 0.0, "high": 0.0, "n": 2}
    assert found["left_out"] == {"clips, the model takes images": 1}
    assert (found["engine"], found["ttft_ms"]["n"]) == ("onnxruntime", 2)
    assert found["model_or_bundle"] == str(exported.bundle.path)
    assert found["dataset"] == str(questions)


def test_a_bundle_as_text(run, exported, questions):
    done = run("evaluate", exported.bundle.path, "--dataset", f"jsonl:{questions}")
    assert done.exit_code == 0
    assert done.stdout.startswith(
        "accuracy 0.0%, 95 % interval 0.0% to 0.0%; 3 questions (3 about images) in 2 scenes;"
        " 16 visual tokens; first token "
    )
    assert "read [red]?[2J" in done.stderr  # neither markup nor control characters
    assert "multi_turn" in done.stderr
    assert "skipped 1 scenes: clips, the model takes images\n" in done.stderr


def test_a_model_and_a_limit(run, tiny_model, questions):
    done = run("evaluate", tiny_model, "--dataset", questions, "--limit", "1", "--json")
    found = json.loads(done.stdout)
    assert (found["engine"], found["n"], found["asked"]) == ("pytorch", 1, {"image": 1})
    assert (found["ttft_ms"], found["bundle_bytes"]) == (None, None)
    assert set(found["not_measured"]) == {"ttft_ms", "bundle_bytes"}


def test_clips_alone(run, tiny_model, questions):
    asked = ("evaluate", tiny_model, "--dataset", questions, "--frames", "2")
    done = run(*asked, "--only", "clip", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["asked"] == {"clip": 1}
    done = run(*asked, "--only", "clips")
    assert done.exit_code == 1
    (line,) = [text for text in done.stderr.splitlines() if not text.startswith("[")]
    assert "has no question of 'clips'; got --only clips, expected some of clip, image" in line


def test_a_model_of_clips(run, tiny_model, questions):
    done = run("evaluate", tiny_model, "--dataset", questions, "--frames", "2")
    assert done.exit_code == 0, done.stderr
    assert "4 questions (3 about images repeated as clips, 1 about clips)" in done.stdout
    assert "skipped" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nlvx"], "unknown dataset 'nlvx'; did you mean 'nlvr'? known: "),
        (["--dataset", "nlvr"], "dataset 'nlvr' needs a path: nlvr:PATH, the folder of NLVR"),
        (["--dataset", "nlvr:no"], "no NLVR at 'no': expected a folder with test/test.json"),
        (["--dataset", "no.jsonl"], "no file of questions at 'no.jsonl'"),
        (["--dataset", "FILE", "--engine", "onnxruntime"],
         "'embedded' is a model, which PyTorch runs; --engine goes with a bundle"),
        (["no.edgevlm", "--dataset", "FILE"], "no bundle at 'no.edgevlm'"),
        (["no", "--dataset", "FILE"], "no model 'no': expected a folder, a hub id"),
        (["BUNDLE", "--dataset", "FILE", "--frames", "4"], "a bundle has its frames already"),
        (["BUNDLE", "--dataset", "FILE", "--engine", "no"], "unknown engine 'no'"),
        (["--dataset", "FILE", "--sweep", "8", "-o", "OUT"],
         "a sweep looks like tokens=8,16,32, got '8'"),
        (["--dataset", "FILE", "--sweep", "tokens=8", "--methods", "x", "-o", "OUT"],
         "unknown method 'x'"),
        (["--dataset", "FILE", "--sweep", "tokens=8", "-o", "OUT/no/s"], "does not exist"),
    ],
)  # fmt: skip
def test_an_error_is_one_line(request, run, questions, tmp_path, arguments, message):
    pytest.importorskip("torch")
    if "BUNDLE" in arguments:
        arguments[0] = request.getfixturevalue("exported").bundle.path
    given = [str(a).replace("FILE", str(questions)) for a in arguments]
    done = run("evaluate", *[a.replace("OUT", str(tmp_path / "out")) for a in given])
    assert done.exit_code == 1
    (line,) = [text for text in done.stderr.splitlines() if not text.startswith("[")]
    assert line.startswith(f"edgevlm: {message}") or message in line
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "all"], "--methods needs --sweep"),
        (["--output", "x"], "--output needs --sweep"),
        (["--keep", "x"], "--keep needs --sweep"),
        (["--sweep", "tokens=8"], "--sweep needs --output PREFIX for its files"),
        (["x.edgevlm", "--sweep", "tokens=8", "-o", "x"], "--sweep takes a model, got a bundle"),
        (["--only", "clip,"], "--only takes names with commas between them, got 'clip,'"),
        (["--limit", "0"], "Invalid value for '--limit'"),
        (["--frames", "2000"], "Invalid value for '--frames'"),
        (["--threads", "0"], "Invalid value for '--threads'"),
    ],
)
def test_wrong_usage(run, arguments, message):
    done = run("evaluate", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""


@pytest.fixture
def no_export(exported, monkeypatch):
    """Each export is a copy of the session's bundle."""
    pytest.importorskip("matplotlib")
    from edgevlm import pipeline

    copy = lambda recipe, path, progress, graphs: shutil.copytree(exported.bundle.path, path)  # noqa: E731
    monkeypatch.setattr(pipeline, "export", copy)


def test_a_sweep(run, tiny_model, no_export, questions, tmp_path):
    options = ("--sweep", "tokens=4,9999", "--methods", "random", "--keep", tmp_path / "kept")
    asked = ("evaluate", tiny_model, "--dataset", questions, *options, "-o", tmp_path / "s")
    done = run(*asked, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert [row["method"] for row in document["rows"]] == [
        "identity", *["average_pool"] * 2, *["random"] * 2
    ]  # fmt: skip
    assert document["rows"][1]["evaluation"]["n"] == 3
    assert "got tokens=9999" in document["rows"][2]["reason"]
    assert document["files"] == [str(tmp_path / "s.csv"), str(tmp_path / "s.png")]
    assert all(Path(file).is_file() for file in document["files"])
    assert " s] random 4 tokens: 0.0%\n" in done.stderr
    assert "skipped 1 scenes: clips, the model takes images\n" in done.stderr
    again = run(*asked)
    assert again.exit_code == 1
    assert "s.csv' exists; choose another --output or give --force" in again.stderr
    text = run(*asked, "--force").stdout
    assert text.splitlines()[0].split() == [
        "method", "tokens", "accuracy", "95", "%", "detail", "multi-turn", "ms", "bundle"
    ]  # fmt: skip
    assert "random" in text
    assert "got tokens=9999" in text


def test_a_sweep_without_matplotlib_ends_at_once(command, questions, tmp_path):
    pytest.importorskip("torch")
    done = command(
        "evaluate", "--dataset", questions, "--sweep", "tokens=4", "-o", tmp_path / "s",
        before="sys.modules['matplotlib'] = None",
    )  # fmt: skip
    assert done.code == 1
    expected = "the picture of a sweep needs matplotlib; pip install 'edgevlm[evaluate]'"
    assert done.err == f"edgevlm: {expected}\n"


def test_a_bundle_is_evaluated_without_torch(command, exported, questions):
    done = command(
        "evaluate", exported.bundle.path, "--dataset", questions, "--json",
        before="sys.modules.update(dict.fromkeys(['torch', 'transformers', 'matplotlib']))",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["n"] == 3
