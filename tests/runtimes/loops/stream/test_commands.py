"""`edgevlm run --stream` and `Model.stream`: events as lines, questions on stdin and by `ask`."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("av")

import av

from edgevlm.api import Model
from edgevlm.errors import InputError


@pytest.fixture(scope="module")
def clip(tmp_path_factory, pictures):
    """Five seconds, two frames a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 64
        for picture in pictures(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture))))
        container.mux(stream.encode())
    return path


def test_events_are_lines_of_json(run, streaming, clip):
    done = run(
        "run", streaming.bundle.path, "--stream", "--video", clip, "--prompt", "What?",
        "--ask-every", "2", "--max-new-tokens", "3", "--fps", "2", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["seconds"] for e in events if e["event"] == "frame"] == [n / 2 for n in range(10)]
    assert [(e["seconds"], e["prompt"]) for e in events if e["event"] == "answer"] == [
        (2, "What?"), (4, "What?"),
    ]  # fmt: skip
    end = events[-1]
    assert (end["event"], end["frames"], end["dropped"], end["why"]) == ("end", 10, 0, "")
    assert end["tokens"] == 640
    assert (end["joules"] is None) == ("energy" in end["not_measured"])
    assert (end["temperature_c"] is None) == ("temperature" in end["not_measured"])


def test_text_is_the_answer_alone(run, streaming, clip):
    arguments = "run", streaming.bundle.path, "--stream", "--video", clip
    asked = run(*arguments, "--prompt", "What?", "--max-new-tokens", "3")
    assert asked.exit_code == 0
    assert asked.stdout.endswith("\n")
    assert "5 frames (0 dropped" in asked.stderr
    typed = run(*arguments, "--chat", "--max-new-tokens", "3", "--json", stdin="One?\n\nTwo?\n")
    events = [json.loads(line) for line in typed.stdout.splitlines()]
    assert [e["prompt"] for e in events if e["event"] == "answer"] == ["One?", "Two?"]


def test_a_line_that_is_no_text_is_refused_and_the_next_is_asked(run, streaming, clip):
    done = run(
        "run", streaming.bundle.path, "--stream", "--video", clip, "--chat", "--max-new-tokens",
        "3", "--json", stdin=b"a\xff\xfe\nTwo?\n",
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["prompt"] for e in events if e["event"] == "answer"] == ["Two?"]
    assert done.stderr.count("the prompt") == 1


def test_a_long_line_and_more_questions_than_may_wait_are_refused(run, streaming, clip, pictures):
    done = run(
        "run", streaming.bundle.path, "--stream", "--video", clip, "--chat", "--max-new-tokens",
        "1", "--json", stdin="x" * 250_000 + "\nTwo?\n",
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["prompt"] for e in events if e["event"] == "answer"] == ["Two?"]
    assert done.stderr.count("a line on stdin has more than 100,000 characters") == 1
    stream = Model(streaming).stream(pictures(1), max_new_tokens=1)
    for _ in range(64):
        stream.ask("What?")
    with pytest.raises(InputError, match=r"^64 questions wait for their answers; ask again"):
        stream.ask("What?")


def test_a_bundle_of_pictures_takes_no_stream(run, exported):
    done = run("run", exported.bundle.path, "--stream", "--video", "x.mp4")
    assert done.exit_code == 1
    assert "the bundle takes no streams: a stream needs a bundle of clips" in done.stderr


def test_a_stream_in_python(streaming, pictures):
    model, found = Model(streaming), []
    stream = model.stream(pictures(6), max_new_tokens=3)
    stream.ask("Before the first?")
    for event in stream:
        found.append(event)
        if event.event == "frame" and event.frames == 4:
            thread = threading.Thread(target=stream.ask, args=("From elsewhere?",))
            thread.start()
            thread.join()
            with pytest.raises(InputError, match="the model is answering"):
                model.generate(None, "Now?")
    answers = [(e.frames, e.prompt) for e in found if e.event == "answer"]
    assert answers == [(1, "Before the first?"), (4, "From elsewhere?")]
    assert model.generate(list(pictures(3)), "What?", max_new_tokens=3).text is not None


def test_a_stream_that_is_stopped_ends(streaming, pictures):
    def forever():
        while True:
            yield from pictures(4)

    stream = Model(streaming).stream(forever(), "What?", max_new_tokens=3)
    kinds = []
    for event in stream:
        kinds.append(event.event)
        if kinds.count("frame") == 3:
            stream.stop()
    assert kinds[-2:] == ["answer", "end"]
    assert kinds.count("frame") <= 3 + 8
