"""What all transports share: the request, and the suspicion with which an answer is read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("onnxruntime")

from edgevlm.devices import local
from edgevlm.devices.shared import contract as t
from edgevlm.errors import DeviceError, RecipeError
from edgevlm.profiling.measurements import ProfileRequest


@pytest.fixture(scope="module")
def job(exported):
    return t.Job(
        exported.bundle.path, ProfileRequest(runs=1, tokens_generated=2), "onnxruntime", threads=1
    )


@pytest.fixture(scope="module")
def good(job):
    from edgevlm.bundle.documents import to_document

    return json.loads(json.dumps(to_document(local.profile("", job, lambda _: None))))


def asked(profile, **changes):
    """The section `text` of a profile with another question."""
    text = profile["text"]
    return {"text": text | {"question": text["question"] | changes}}


def test_an_answer_gets_the_names_that_only_this_side_knows(job, good, exported):
    there = good | {"bundle": "x", **asked(good, image="picture")}
    found = t.received(json.dumps(there).encode(), job, exported.bundle, "ssh:board")
    assert (found.device, found.bundle, found.text.question.image) == (
        "ssh:board", "tiny.edgevlm", "scene.png"
    )  # fmt: skip


def test_an_engine_that_does_not_tell_its_threads(job, good, exported):
    there = good | {"threads": None}
    there["not_measured"] = good["not_measured"] | {"threads": "the engine does not say"}
    found = t.received(json.dumps(there).encode(), job, exported.bundle, "ssh:board")
    assert found.threads is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"speed": 1}, "sent no profile: profile.json has an unknown key 'speed'"),
        (lambda d: d | {"schema_version": 9}, "sent no profile: 'profile.json': schema_version"),
        (lambda d: d | {"ttft_ms": "fast"}, "sent no profile: profile.json.ttft_ms must be float"),
        (lambda d: d | {"ttft_ms": None}, "sent no profile: profile.json: ttft_ms must have"),
        (lambda d: d | {"recipe": d["recipe"] | {"tokens": 17}}, "its recipe differs"),
        (lambda d: d | {"runs": 100}, "its runs differs from the request"),
        (lambda d: d | {"engine": "null"}, "its engine differs from the request"),
        (lambda d: d | {"blocks": d["blocks"][1:]}, "its blocks differs from the request"),
        (lambda d: d | asked(d, prompt="?"), "its text.question.prompt differs"),
    ],
)  # fmt: skip
def test_an_answer_to_something_else(job, good, exported, change, message):
    text = json.dumps(change(good)).encode()
    with pytest.raises(DeviceError, match=message) as caught:
        t.received(text, job, exported.bundle, "ssh:board")
    assert str(caught.value).startswith("ssh:board sent ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b"\0"])
def test_an_answer_that_is_none(job, exported, text):
    with pytest.raises(DeviceError, match=r"^ssh:board sent no profile: ") as caught:
        t.received(text, job, exported.bundle, "ssh:board")
    assert len(str(caught.value)) < 400


def test_a_request_is_read_as_it_was_written(job, exported, tmp_path):
    path = tmp_path / "request.json"
    path.write_text(t.request_text(job, exported.bundle), "utf-8")
    assert t.read_request(path) == t.RunRequest(
        1, "tiny.edgevlm", job.request.prompt, 1, 2, 0.0, "onnxruntime", 1, None
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle": "../../etc"}, "request.json: bundle must be the name of a folder"),
        ({"format_version": 2}, "request.json: format_version is 2, expected 1"),
        ({"shell": "x"}, "request.json has an unknown key 'shell'"),
        ({"runs": "1"}, "request.json.runs must be an integer, got '1'"),
    ],
)
def test_a_request_that_is_none(job, exported, tmp_path, change, message):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(json.loads(t.request_text(job, exported.bundle)) | change), "utf-8")
    with pytest.raises(DeviceError, match=message):
        t.read_request(path)
    path.write_text("{")
    with pytest.raises(DeviceError, match=r"^request\.json: "):
        t.read_request(path)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("tiny.edgevlm", "tiny.edgevlm"),
        ("my model é.edgevlm", "my_model__.edgevlm"),
        ("..", "bundle"),
        ("-rf", "rf"),
        ("x" * 300, "x" * 100),
    ],
)
def test_names_on_a_device(name, safe):
    assert t.safe_name(name) == safe


def test_an_unknown_engine_is_refused_here(job):
    with pytest.raises(RecipeError, match="unknown engine 'onnx'; did you mean 'onnxruntime'"):
        t.opened(replace(job, engine="onnx"))
