"""`edgevlm serve` over real sockets, asked by OpenAI's own client where it is installed."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import edgevlm

uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from edgevlm.cli import app  # noqa: E402
from edgevlm.runtimes.loading import load_loop  # noqa: E402
from edgevlm.runtimes.loops.sampling import Sampling  # noqa: E402
from edgevlm.serve import pictures, worker  # noqa: E402
from edgevlm.serve.app import Server  # noqa: E402
from edgevlm.serve.generation import Cut, Ended, complete  # noqa: E402
from edgevlm.serve.limits import Limits, Refused  # noqa: E402
from edgevlm.serve.metrics import Metrics  # noqa: E402
from edgevlm.serve.requests import Completion, Turn, parse  # noqa: E402

ROOT = Path(__file__).parents[2]
PHOTOS = Path(edgevlm.__file__).parent / "photos"
KEY = "secret"


def png(seed: int, size: tuple[int, int] = (24, 24)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def user(text: str, *images: bytes) -> dict:
    shown = [{"type": "image_url", "image_url": {"url": uri(each)}} for each in images]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


class Served:
    """A server in a thread of this process."""

    def __init__(self, path, **limits):
        self.limits, self.metrics = Limits(**limits), Metrics()
        self.worker = worker.Worker({"tiny": Path(path)}, self.limits, self.metrics, threads=1)
        self.worker.start()
        served = Server(self.worker, self.limits, self.metrics, KEY, False).app
        config = uvicorn.Config(served, port=0, log_level="error", timeout_graceful_shutdown=1)
        bound = config.bind_socket()
        self.port = bound.getsockname()[1]
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([bound],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def client(self):
        openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
        address = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=address, api_key=KEY, max_retries=0)

    def send(self, body: bytes, key: str = KEY, **headers: object) -> socket.socket:
        lines = {"Host": "x", "Authorization": f"Bearer {key}", "Content-Length": len(body),
                 "Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()}  # fmt: skip
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        sent = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sent.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body)
        return sent

    def status(self, body: bytes, **options: object) -> tuple[int, str]:
        with self.send(body, **options) as sent:
            answer = HTTPResponse(sent)
            answer.begin()
            return answer.status, f"{answer.headers}{answer.read().decode()}"

    def end(self):
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture(scope="module")
def served(exported):
    server = Served(exported.bundle.path, queue=4, body_bytes=10**6)
    yield server
    server.end()


@pytest.fixture(scope="module")
def model(exported):
    return edgevlm.load(exported.bundle.path, threads=1)


def asked(*messages: dict, **more: object) -> bytes:
    return json.dumps({"model": "tiny", "messages": messages, **more}).encode()


def test_the_client_gets_the_answer_of_the_api_streamed_and_not(served, model):
    client, ask = served.client(), user("What is it?", png(1), png(2))
    expected = model.generate([png(1), png(2)], "What is it?", max_new_tokens=8)
    named = {"model": "tiny", "messages": [ask], "max_completion_tokens": 8}
    whole = client.chat.completions.create(**named)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage.prompt_tokens == expected.prompt_tokens
    assert whole.usage.completion_tokens == len(expected.token_ids)
    assert whole.usage.prompt_tokens_details.visual_tokens == expected.visual_tokens
    assert whole.choices[0].finish_reason == expected.stopped
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**named, stream=True, stream_options=usage))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected.text
    assert chunks[-1].usage == whole.usage
    assert client.models.list().data[0].id == "tiny"
    sampled = Sampling(1.0, 0.9, seed=3)
    expected = model.generate(png(1), "Why?", max_new_tokens=6, sampling=sampled)
    answer = client.chat.completions.create(
        model="tiny", messages=[user("Why?", png(1))], max_tokens=6, temperature=1.0, top_p=0.9,
        seed=3,
    )  # fmt: skip
    assert answer.choices[0].message.content == expected.text


def test_a_stop_string_ends_the_answer_before_it(served, model):
    text = model.generate(png(1), "What?", max_new_tokens=12).text
    stop = text[len(text) // 2 :][:3]
    answer = served.client().chat.completions.create(
        model="tiny", messages=[user("What?", png(1))], max_completion_tokens=12, stop=stop
    )
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("pieces", [["ab", "cEN", "Dx"], ["abcE", "N", "D"], list("abcENDx")])
def test_a_stop_string_between_two_pieces_is_not_sent(pieces):
    sent: list[str] = []
    cut = Cut(["END", "EX"], sent.append)
    with pytest.raises(Ended):
        list(map(cut, pieces))
    assert "".join(sent) == "abc"


def test_what_only_begins_like_a_stop_string_is_sent():
    sent: list[str] = []
    cut = Cut(["END"], sent.append)
    for piece in ("aE", "N", "E", "EN"):
        cut(piece)
    cut.finish()
    assert "".join(sent) == "aENEEN"


@pytest.fixture(scope="module")
def loop(exported):
    return load_loop(exported.bundle.path, threads=1)


def completion(*turns: Turn, **more: object) -> Completion:
    fields = {"model": "tiny", "system": None, "turns": turns, "most_tokens": 8,
              "sampling": Sampling(), "stops": (), "stream": False, "usage": False}  # fmt: skip
    return Completion(**fields | more)


def test_an_earlier_reply_stands_in_the_conversation_as_if_it_had_been_chosen(loop):
    first, reply = Turn((None, "What?"), (png(1),)), "a dog"
    ids = loop.tokenizer.encode(reply, add_special_tokens=False).ids
    stop = loop.plan.host.stop_ids[0]
    known = iter([*ids, stop])
    begun = Turn(first.parts, first.pictures, reply)
    told: list[str] = []
    result = complete(loop, completion(begun, Turn(("Why?",), ())), told.append, lambda: None)
    loop.reset()
    real = loop.logits
    loop.logits = lambda: np.eye(stop + 1 + max(ids))[next(known)]
    loop.ask([None, "What?"], loop.visuals([png(1)]), 64)
    loop.logits = real
    expected = loop.ask("Why?", max_new_tokens=8)
    assert "".join(told) == expected.text
    assert result.prompt_tokens > expected.prompt_tokens + len(ids)


def test_an_answer_that_is_left_ends_at_the_next_call_and_the_loop_goes_on(loop):
    ask = completion(Turn((None, "What?"), (png(5),)), most_tokens=30)
    whole: list[str] = []
    calls = [0]

    def count() -> None:
        calls[0] += 1

    complete(loop, ask, whole.append, count)
    for end in (1, 2, calls[0] // 2, calls[0] - 1):
        left = iter([None] * end)

        def leave(left=left) -> None:
            if next(left, Ended) is Ended:
                raise Refused(504, "late")

        with pytest.raises(Refused):
            complete(loop, ask, lambda _: None, leave)
        again: list[str] = []
        complete(loop, ask, again.append, lambda: None)
        assert "".join(again) == "".join(whole)


def test_a_client_that_leaves_frees_its_place_and_a_full_queue_says_when(served, monkeypatch):
    ended, running = threading.Event(), threading.Event()

    def forever(loop, job, send, check):
        running.set()
        try:
            while True:
                send("x")
                check()
                time.sleep(0.002)
        finally:
            ended.set()

    monkeypatch.setattr(worker, "complete", forever)
    for stream in (False, True):
        ended.clear(), running.clear()
        clients = [served.send(asked(user("?"), stream=stream)) for _ in range(4)]
        assert running.wait(5)
        while served.worker.queued < 4:
            time.sleep(0.002)
        status, answer = served.status(asked(user("?")))
        assert status == 429
        assert "retry-after: 1" in answer
        for client in clients:
            client.close()
        assert ended.wait(5)
        until = time.monotonic() + 5
        while served.worker.queued and time.monotonic() < until:
            time.sleep(0.002)
        assert not served.worker.queued


WRONG = {
    "2 GB": (b"{", {"Content_Length": 2 * 10**9}, 413, "more than 1,000,000 bytes"),
    "JSON": (b"{'", {}, 400, "the body is not JSON"),
    "list": (b"[]", {}, 400, "must be an object"),
    "key": (b"{}", {"key": "other"}, 401, "the API key is missing or wrong"),
    "type": (b"{}", {"Content_Type": "text/plain"}, 415, "must be application/json"),
    "model": (asked(user("?")).replace(b"tiny", b"big"), {}, 404, "no model 'big'"),
    "tools": (asked(user("?"), tools=[{}]), {}, 400, "'tools' is not supported"),
    "schema": (asked(user("?"), response_format={"type": "json_schema"}), {}, 400,
               "'response_format' is not supported"),
    "stop": (asked(user("?"), stop=[""]), {}, 400, "'stop' must be a text"),
    "tokens": (asked(user("?"), max_tokens=0), {}, 400, "a whole number from 1"),
    "heat": (asked(user("?"), temperature="hot"), {}, 400, "temperature"),
    "address": (asked({"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}), {}, 400,
        "addresses are not fetched here"),
    "wide": (asked(user("?", png(0, (1, 50_000)))), {}, 400, "the picture is 50000x1"),
    "picture": (asked(user("?", b"no picture")), {}, 400, "is not an image"),
    "role": (asked(user("?"), user("?")), {}, 400, "role 'user' is out of place"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_refused_at_once_in_one_line(served, name, caplog):
    body, headers, status, message = WRONG[name]
    took = []
    for _ in range(3):
        caplog.clear()
        started = time.perf_counter()
        with caplog.at_level(logging.WARNING, "edgevlm"):
            got, answer = served.status(body, **headers)
        took.append(time.perf_counter() - started)
        error = json.loads(answer[answer.index("{") :])["error"]
        assert (got, message in error["message"]) == (status, True), error
        assert len(caplog.messages) == 1
        assert "\n" not in caplog.messages[0]
    assert min(took) < 0.1


def test_a_late_answer_is_refused(exported):
    server = Served(exported.bundle.path, deadline_s=0.0001)
    status, answer = server.status(asked(user("What?")))
    server.end()
    assert status in (408, 504)
    assert "in time" in answer or "takes longer than" in answer


def test_figures_are_text_of_prometheus(served):
    asks = HTTPConnection("127.0.0.1", served.port)
    asks.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    answer = asks.getresponse()
    text = f"{answer.headers}{answer.read().decode()}"
    assert "version=0.0.4" in text
    assert "# TYPE edgevlm_time_to_first_token_seconds histogram" in text
    assert "edgevlm_queue_length 0" in text


INSIDE = ("127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "localhost",
          "0.0.0.0", "224.0.0.1")  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
def test_an_address_that_is_not_public_is_not_fetched(host):
    shown = f"[{host}]" if ":" in host else host
    with pytest.raises(Refused, match="not a public address"):
        pictures.picture(f"http://{shown}/x.png", Limits(), addresses=True)


def test_unknown_parameters_are_ignored_and_pictures_keep_their_place():
    body = asked({"role": "system", "content": "Be brief."}, user("What?", b"x"), user="me", n=1)
    found = parse(body, Limits(), False)
    assert found.system == "Be brief."
    assert found.turns == (Turn((None, "What?"), (b"x",)),)


def test_a_missing_extra_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(app, ["serve", "x"])
    assert done.exit_code == 1
    assert "edgevlm serve needs uvicorn; pip install 'edgevlm[serve]'" in done.stderr


def test_other_commands_import_nothing_of_it():
    code = "import edgevlm.cli, sys; print([m for m in sys.modules if m.startswith(NAMES)])"
    code = code.replace("NAMES", "('starlette', 'uvicorn', 'edgevlm.serve')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_200_requests_each_with_its_picture_are_right_or_refused(exported, model):
    server = Served(exported.bundle.path, queue=16)
    openai = pytest.importorskip("openai")
    client = server.client()
    expected = [
        model.generate(png(seed), f"What is {seed}?", max_new_tokens=6).text for seed in range(200)
    ]

    def ask(seed: int) -> str:
        try:
            answer = client.chat.completions.create(
                model="tiny", messages=[user(f"What is {seed}?", png(seed))], max_tokens=6
            )
        except openai.RateLimitError:
            return "429"
        return "right" if answer.choices[0].message.content == expected[seed] else "wrong"

    with ThreadPoolExecutor(200) as threads:
        results = Counter(threads.map(ask, range(200)))
    server.end()
    assert results["wrong"] == 0
    assert results["right"] >= 16
    assert results.total() == 200


@pytest.mark.slow
def test_the_embedded_model_answers_as_the_readme_says(start, tmp_path):
    openai = pytest.importorskip("openai")
    edgevlm.export(edgevlm.Recipe(model="embedded", tokens=98), tmp_path / "embedded.edgevlm")
    process = start("serve", tmp_path / "embedded.edgevlm", "--port", "0")
    try:
        address = process.stderr.readline().split()[2].rstrip(";")
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        hand = user("Which digit does the hand show?", (PHOTOS / "hand.jpg").read_bytes())
        scene = user("What colour is the star?", (PHOTOS / "scene.png").read_bytes())
        create = client.chat.completions.create
        assert create(model="embedded", messages=[hand]).choices[0].message.content == "5"
        streamed = create(model="embedded", messages=[hand], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "5"
        messages = [scene, {"role": "assistant", "content": "orange"},
                    user("What shape is the purple object?")]  # fmt: skip
        assert create(model="embedded", messages=messages).choices[0].message.content == "circle"
    finally:
        process.terminate()
        process.communicate(timeout=10)
